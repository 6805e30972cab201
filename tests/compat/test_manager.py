"""The repaired copy: built once, whole, from files that it knows, and the installed files stay as they are."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from elm_nni.compat.known_files import KnownFile, nni_version, package_folder
from elm_nni.compat.manager import manager_cache, repaired_manager
from elm_nni.compat.manager_repairs import MANAGER_REPAIRS, SHA256, ManagerRepair
from elm_nni.compat.settings import ManagerSettings
from elm_nni.digest import file_digest
from elm_nni.errors import UserError

from .conftest import answers, free_port, listening, wait_for

STOCK = package_folder("nni_node")


def names(cache):
    return sorted(path.name for path in cache.iterdir())


def test_the_copy_differs_in_the_repaired_files_alone(tmp_path):
    folder = repaired_manager(tmp_path)
    repaired = {repair.known.file.removeprefix("nni_node/") for repair in MANAGER_REPAIRS}
    copied = [path for path in folder.rglob("*.js") if path.is_file() and not path.is_relative_to(folder / "static")]
    different = {
        path.relative_to(folder).as_posix()
        for path in copied
        if path.read_bytes() != (STOCK / path.relative_to(folder)).read_bytes()
    }
    assert different == repaired
    assert len(copied) > 100
    assert file_digest(STOCK / "main.js") == SHA256["nni_node/main.js"]


def test_the_copy_is_small_and_links_the_rest(tmp_path):
    folder = repaired_manager(tmp_path)
    assert {path.name for path in folder.iterdir() if path.is_symlink()} == {"node", "node_modules", "static"}
    size = sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_symlink())
    assert size < 3 * 2**20


def test_every_repaired_file_is_javascript(tmp_path):
    folder = repaired_manager(tmp_path)
    for file in SHA256:
        path = folder / file.removeprefix("nni_node/")
        done = subprocess.run([folder / "node", "--check", path], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_a_second_call_builds_nothing(tmp_path):
    folder = repaired_manager(tmp_path)
    before = (folder / "main.js").stat().st_mtime_ns
    assert repaired_manager(tmp_path) == folder
    assert (folder / "main.js").stat().st_mtime_ns == before
    assert names(tmp_path) == [folder.name]


@pytest.mark.parametrize("damage", ["changed", "missing", "unlinked"])
def test_a_damaged_copy_is_built_again(tmp_path, damage):
    folder = repaired_manager(tmp_path)
    if damage == "changed":
        (folder / "main.js").write_text("")
    elif damage == "missing":
        (folder / "common" / "log.js").unlink()
    else:
        (folder / "node_modules").unlink()
    assert repaired_manager(tmp_path) == folder
    assert "ELM_NNI_DRIVER" in (folder / "main.js").read_text()
    assert (folder / "common" / "log.js").is_file()
    assert (folder / "node_modules" / "express").is_dir()
    assert names(tmp_path) == [folder.name]


def test_processes_that_build_at_once_agree(tmp_path):
    program = "from pathlib import Path; from elm_nni.compat.manager import repaired_manager as build; import sys\n"
    program += "print(build(Path(sys.argv[1])))"
    started = [
        subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True) for _ in range(6)
    ]
    folders = {process.communicate()[0].strip() for process in started}
    assert all(process.returncode == 0 for process in started)
    assert folders == {str(repaired_manager(tmp_path))}
    assert len(names(tmp_path)) == 1


def copy_of_known_files(root):
    for file in SHA256:
        target = root / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(package_folder("nni_node").parent / file, target)
    return root / "nni_node"


def test_a_changed_nni_is_refused_by_name_and_digest(tmp_path):
    stock = copy_of_known_files(tmp_path / "site-packages")
    changed = stock / "rest_server" / "index.js"
    changed.write_text(changed.read_text() + "\n")
    with pytest.raises(UserError) as caught:
        repaired_manager(tmp_path / "cache", stock=stock)
    message = str(caught.value)
    assert "\n" not in message
    assert str(changed) in message
    assert SHA256["nni_node/rest_server/index.js"] in message
    assert file_digest(changed) in message
    assert not (tmp_path / "cache").exists()


def test_another_release_is_refused():
    known = replace(MANAGER_REPAIRS[0].known, nni_version="2.10")
    with pytest.raises(UserError, match=rf"nni {nni_version()} is installed, but the repairs are for nni 2\.10"):
        known.check()


def test_an_edit_must_fit_once():
    repair = ManagerRepair("twice", KnownFile("nni_node/main.js", "0" * 64), (("a", "b"),))
    assert repair.apply("cab") == "cbb"
    with pytest.raises(UserError, match="fits 2 places of nni_node/main.js, not one"):
        repair.apply("aa")
    with pytest.raises(UserError, match="fits 0 places"):
        repair.apply("c")


def test_other_repairs_have_another_folder(tmp_path):
    assert repaired_manager(tmp_path) != repaired_manager(tmp_path, repairs=MANAGER_REPAIRS[1:])


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("ELM_NNI_CACHE", str(tmp_path))
    assert manager_cache() == tmp_path / "nni_manager"
    monkeypatch.delenv("ELM_NNI_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert manager_cache() == tmp_path / "xdg" / "elm_nni" / "nni_manager"


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the repaired manager into .*; .* ELM_NNI_CACHE"):
        repaired_manager(tmp_path / "file")


def test_listen_is_this_machine_or_all():
    assert ManagerSettings().listen == "127.0.0.1"
    assert ManagerSettings(listen="0.0.0.0").listen == "0.0.0.0"
    with pytest.raises(UserError, match=r"listen '10\.0\.0\.1': expected 127\.0\.0\.1"):
        ManagerSettings(listen="10.0.0.1")
    with pytest.raises(UserError, match="watch_seconds -1: expected 0 to 600"):
        ManagerSettings(watch_seconds=-1)


def test_the_manager_listens_where_it_is_told(tmp_path):
    folder = repaired_manager(tmp_path / "cache")
    port = free_port()
    (tmp_path / "nni-experiments").mkdir()
    (tmp_path / "nni-experiments" / ".experiment").write_text("{}")
    manager = subprocess.Popen(
        [
            folder / "node", folder / "main.js", "--port", str(port), "--experiment-id", "listen", "--action", "create",
            "--experiments-directory", tmp_path / "nni-experiments", "--log-level", "info", "--python-interpreter",
            sys.executable,
        ],
        cwd=folder, env={**os.environ, "HOME": str(tmp_path), "ELM_NNI_LISTEN": "127.0.0.3"},
    )  # fmt: skip
    try:
        assert wait_for(lambda: listening(port), 20) == {"0300007F"}
        assert answers("127.0.0.3", port)
        assert not answers("127.0.0.1", port)
    finally:
        manager.kill()
        manager.wait()
