"""Files of the installed NNI that our repairs know, by version and SHA-256."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from elm_nni.digest import file_digest
from elm_nni.errors import UserError

NNI_VERSION = "3.0"


@dataclass(frozen=True)
class KnownFile:
    """One file of the installed NNI, as a repair was written for it.

    Attributes:
        file: path below site-packages, such as ``nni_node/main.js``.
        sha256: digest of the file that the repair knows.
        nni_version: release of NNI that ships it.

    Example:
        >>> KnownFile("nni_node/main.js", "0" * 64).check()  # doctest: +SKIP
        elm_nni.errors.UserError: nni_node/main.js is not the file of NNI 3.0 ...
    """

    file: str
    sha256: str
    nni_version: str = NNI_VERSION

    @property
    def path(self) -> Path:
        """Where the file is installed."""
        package, _, rest = self.file.partition("/")
        return package_folder(package) / rest

    def check(self, root: Path | None = None) -> None:
        """Refuses a file that is not the known one; ``root`` replaces site-packages.

        Raises:
            UserError: another release of NNI is installed, or the file differs.
        """
        found_version = nni_version()
        if found_version != self.nni_version:
            raise UserError(
                f"nni {found_version} is installed, but the repairs are for nni {self.nni_version}: "
                f"pip install nni=={self.nni_version}"
            )
        path = self.path if root is None else root / self.file
        found = file_digest(path) if path.is_file() else "no file"
        if found != self.sha256:
            raise UserError(
                f"{path} is not the file of nni {self.nni_version} that the repair knows: expected SHA-256 "
                f"{self.sha256}, found {found}; pip install --force-reinstall --no-deps nni=={self.nni_version}"
            )


def package_folder(package: str) -> Path:
    """The folder of an installed package, without importing it.

    Raises:
        UserError: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the package {package} is not installed: pip install nni=={NNI_VERSION}")
    return Path(spec.submodule_search_locations[0])


def nni_version() -> str:
    """Version of the installed NNI.

    Raises:
        UserError: it is not installed.
    """
    try:
        return version("nni")
    except PackageNotFoundError as error:
        raise UserError(f"nni is not installed: pip install nni=={NNI_VERSION}") from error
