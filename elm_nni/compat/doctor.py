"""``elm-nni doctor``: what would fail on this machine, found without a network and without importing torch."""

from __future__ import annotations

import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from elm_nni.cache import default_store
from elm_nni.compat.known_files import NNI_VERSION, package_folder
from elm_nni.compat.launcher import check_port
from elm_nni.compat.manager import repaired_manager
from elm_nni.compat.manager_repairs import MANAGER_REPAIRS
from elm_nni.compat.nas_repairs import NAS_FILES, NAS_REPAIRS
from elm_nni.compat.pkg_resources_substitute import has_pkg_resources
from elm_nni.compat.python_repairs import PYTHON_REPAIRS
from elm_nni.errors import UserError

# The versions of constraints.txt, which a test compares; pip does not list setuptools there.
TESTED = {
    "torch": "2.13.0", "nni": "3.0", "transformers": "5.23.0", "datasets": "5.2.0", "optuna": "5.0.0",
    "pytorch-lightning": "2.6.6", "setuptools": "80.10.2", "numpy": "2.4.6", "filelock": "3.11.0",
    "typeguard": "4.1.2",
}  # fmt: skip
TESTED_PYTHON = "3.11"
_MIN_FREE_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        name: what was looked at.
        found: what is there.
        problem: what would fail, or None.
        fix: the command that mends it; empty without a problem.
    """

    name: str
    found: str
    problem: str | None = None
    fix: str = ""

    def lines(self) -> list[str]:
        """The line of the table, and one more for the command that mends a problem."""
        if self.problem is None:
            return [f"ok       {self.name:<22} {self.found}"]
        return [f"PROBLEM  {self.name:<22} {self.problem}", f"{'':<9}{'mend it with':<22} {self.fix}"]


def examine(*, port: int = 8080, store: Path | None = None) -> Iterator[Finding]:
    """All findings, in the order of the table; each comes as soon as it is known.

    Args:
        port: the port that the web UI would use.
        store: the stage store; by default ``ELM_NNI_STORE`` or the user's cache folder.

    Example:
        >>> [finding.name for finding in examine() if finding.problem]
        []
    """
    yield _python()
    for name in TESTED:
        yield _package(name)
    yield _pkg_resources()
    yield _attempt("node", f"pip install --force-reinstall --no-deps nni=={NNI_VERSION}", _node)
    yield _attempt("known files of NNI", f"pip install --force-reinstall --no-deps nni=={NNI_VERSION}", _known_files)
    yield _attempt("repaired manager", "export ELM_NNI_CACHE=FOLDER", lambda: str(repaired_manager()))
    yield _attempt(f"port {port}", "elm-nni nnictl create --config FILE --port OTHER", lambda: _port(port))
    yield _attempt("stage store", "export ELM_NNI_STORE=FOLDER", lambda: writable(store or default_store()))
    yield _attempt("experiments", "export HOME=FOLDER", lambda: writable(Path.home() / "nni-experiments"))
    yield from _offline()


def _python() -> Finding:
    found = platform.python_version()
    if not found.startswith(("3.11.", "3.12.")):
        return Finding("python", found, f"{found}; needed: 3.11 or 3.12", "python3.11 -m venv .venv")
    return Finding("python", _compared(found, found.startswith(f"{TESTED_PYTHON}."), TESTED_PYTHON))


def _package(name: str) -> Finding:
    tested = TESTED[name]
    try:
        found = version(name)
    except PackageNotFoundError:
        if name == "setuptools":
            return Finding(name, "not installed, not needed by elm-nni nnictl")
        return Finding(name, "", "not installed", f"pip install {name}=={tested}")
    needed = _requirement(name)
    # pkg_resources, the reason for the bound on setuptools, has a row and a substitute of its own
    if name != "setuptools" and needed is not None and not needed.specifier.contains(found, prereleases=True):
        return Finding(name, found, f"{found}; needed: {needed.specifier}", f"pip install {name}=={tested}")
    return Finding(name, _compared(found, Version(found).public == tested, tested))


def _compared(found: str, is_tested: bool, tested: str) -> str:
    return f"{found}, tested" if is_tested else f"{found}, not tested; tested: {tested}"


def _requirement(name: str) -> Requirement | None:
    for source in ("elm-nni", "nni"):
        try:
            listed = [Requirement(text) for text in requires(source) or []]
        except PackageNotFoundError:
            continue
        for requirement in listed:
            if requirement.name == name and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
                return requirement
    return None


def _pkg_resources() -> Finding:
    if has_pkg_resources():
        return Finding("pkg_resources", "present")
    return Finding("pkg_resources", 'substituted in elm-nni nnictl; plain nnictl needs: pip install "setuptools<81"')


def _attempt(name: str, fix: str, action: Callable[[], str]) -> Finding:
    try:
        return Finding(name, action())
    except (UserError, OSError, subprocess.SubprocessError) as error:
        # the command that the message names fits better than the general one
        problem, _, command = str(error).partition("; pip install")
        return Finding(name, "", problem, f"pip install{command}" if command else fix)


def _node() -> str:
    node = package_folder("nni_node") / "node"
    done = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=5, check=True)
    return f"{done.stdout.strip()} runs"


def _known_files() -> str:
    known = {repair.known for repair in MANAGER_REPAIRS} | set(NAS_FILES)
    known |= {repair.known for repair in (*PYTHON_REPAIRS, *NAS_REPAIRS)}
    for file in sorted(known, key=lambda file: file.file):
        file.check()
    return f"{len(known)} files as nni {NNI_VERSION} ships them"


def _port(port: int) -> str:
    check_port(port)
    return "free"


def writable(folder: Path) -> str:
    """Writes and removes a file in the folder, or in the one above it that exists.

    Raises:
        OSError: it cannot be written, or less than 2 GB are free.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    with tempfile.TemporaryFile(dir=existing) as file:
        file.write(b"elm-nni doctor")
    free = shutil.disk_usage(existing).free
    if free < _MIN_FREE_BYTES:
        raise OSError(f"{existing} has {free / 2**30:.1f} GB free, {_MIN_FREE_BYTES / 2**30:g} GB are needed")
    return f"{folder}, {free / 2**30:.0f} GB free"


def _offline() -> Iterator[Finding]:
    from elm_nni.data.offline import INSTALL, OFFLINE, offline_files

    for name, files in OFFLINE.items():
        title = f"offline:{name}"
        try:
            num_files = len(offline_files(name))
        except UserError as error:
            problem, _, command = str(error).partition("install it with: ")
            yield Finding(title, "", problem.removesuffix("; re").rstrip("; "), command or INSTALL)
        else:
            yield Finding(title, f"{files.package}, {num_files} files, digest checked")
