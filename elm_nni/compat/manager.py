"""A repaired copy of NNI's node manager in the user's cache; the installed one stays as it is.

Only NNI's own JavaScript is copied (about 1 MB, 140 files). The node binary, its modules and the web pages, about
190 MB, are links to the installed files: node resolves a link to its target, so a linked module finds its neighbours.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from platformdirs import user_cache_path

from elm_nni.compat.known_files import nni_version, package_folder
from elm_nni.compat.manager_repairs import MANAGER_REPAIRS, ManagerRepair
from elm_nni.digest import digest, file_digest
from elm_nni.errors import UserError

_LINKED = ("node", "node_modules", "static")
_LEFT_OUT = ("__init__.py", "__pycache__", "package-lock.json", "package-lock.lock")


def manager_cache() -> Path:
    """``ELM_NNI_CACHE``, else the user's cache folder, and in it the folder of the repaired managers."""
    return Path(os.environ.get("ELM_NNI_CACHE") or user_cache_path("elm_nni")).absolute() / "nni_manager"


def repaired_manager(
    cache: Path | None = None, *, stock: Path | None = None, repairs: Sequence[ManagerRepair] = MANAGER_REPAIRS
) -> Path:
    """The folder of the repaired manager, built when it is not there; ``stock`` is the installed ``nni_node``.

    The name is a digest of NNI's version, its place, its files and the repairs. Several processes may ask at once: each
    builds beside the final name, and the first to rename wins.

    Raises:
        UserError: NNI has another version or changed files, or the cache cannot be written.

    Example:
        >>> (repaired_manager() / "main.js").is_file()
        True
    """
    stock = (stock or package_folder("nni_node")).resolve()
    for repair in repairs:
        repair.known.check(stock.parent)
    files = _own_files(stock)
    folder = (cache or manager_cache()) / digest(
        {
            "version": nni_version(), "stock": str(stock), "files": {name: file_digest(stock / name) for name in files},
            "repairs": [[repair.name, repair.known.file, repair.edits] for repair in repairs],
        }  # fmt: skip
    )
    texts = _repaired_texts(stock, repairs)
    if not _whole(folder, stock, files, texts):
        try:
            _build(folder, stock, files, texts)
        except OSError as error:
            raise UserError(
                f"cannot write the repaired manager into {folder.parent}: {error.strerror or error}; "
                "name another folder with ELM_NNI_CACHE"
            ) from error
    return folder


def _own_files(stock: Path) -> list[str]:
    found = []
    for entry in sorted(stock.iterdir()):
        if entry.name in _LINKED or entry.name in _LEFT_OUT:
            continue
        found += [path for path in sorted(entry.rglob("*")) if path.is_file()] if entry.is_dir() else [entry]
    return [path.relative_to(stock).as_posix() for path in found]


def _repaired_texts(stock: Path, repairs: Sequence[ManagerRepair]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for repair in repairs:
        name = repair.known.file.partition("/")[2]
        texts[name] = repair.apply(texts.get(name) or (stock / name).read_text(encoding="utf-8"))
    return texts


def _whole(folder: Path, stock: Path, files: Sequence[str], texts: dict[str, str]) -> bool:
    # a cleaner of old files may have taken some
    if not all((folder / name).exists() for name in _LINKED):
        return False
    if not all((folder / name).is_file() for name in files):
        return False
    return all((folder / name).read_text(encoding="utf-8") == text for name, text in texts.items())


def _build(folder: Path, stock: Path, files: Sequence[str], texts: dict[str, str]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for name in files:
            target = partial / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if name in texts:
                target.write_text(texts[name], encoding="utf-8")
            else:
                shutil.copyfile(stock / name, target)
        for name in _LINKED:
            (partial / name).symlink_to(stock / name)
        partial.chmod(0o755)
        if folder.exists() and not _whole(folder, stock, files, texts):
            folder.rename(Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent)) / "damaged")
        partial.rename(folder)
    except OSError:
        # another process was first
        if not _whole(folder, stock, files, texts):
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for old in folder.parent.glob(f".{folder.name}.*/damaged"):
            shutil.rmtree(old.parent, ignore_errors=True)
