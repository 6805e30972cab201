"""Files are replaced as a whole: readers see all of the old or all of the new, and nothing is left behind."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from elm_nni.errors import UserError
from elm_nni.files import write_bytes, write_text


def test_content_arrives_unchanged_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    for content in (b"first, and longer", b"\x00\xff\r\n", b""):
        write_bytes(path, content)
        assert path.read_bytes() == content
    write_text(path, "ä\n\u2028\r\n")
    assert path.read_bytes() == "ä\n\u2028\r\n".encode()
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path, contents = tmp_path / "big", [letter * 300_000 for letter in (b"a", b"b")]
    write_bytes(path, contents[0])
    ended, broken = threading.Event(), []

    def read() -> None:
        while not ended.is_set():
            found = path.read_bytes()
            if found not in contents:
                broken.append(len(found))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(60):
        write_bytes(path, contents[number % 2])
    ended.set()
    reader.join()
    assert broken == []


def test_writers_at_the_same_time_do_not_disturb_each_other(tmp_path: Path) -> None:
    path, contents = tmp_path / "shared", [bytes([number]) * 10_000 for number in range(8)]
    failed: list[BaseException] = []

    def write(content: bytes) -> None:
        try:
            for _ in range(20):
                write_bytes(path, content)
        except BaseException as error:
            failed.append(error)

    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert failed == []
    assert path.read_bytes() in contents
    assert [entry.name for entry in tmp_path.iterdir()] == ["shared"]


# A limit on the size of files stands in for a full disk: the write itself fails, after a part of it succeeded.
FULL = """
import resource, signal, sys
from pathlib import Path
from elm_nni.errors import UserError
from elm_nni.files import write_bytes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_bytes(Path(sys.argv[1]), b"x" * 100_000)
except UserError as error:
    print(error)
"""


def test_a_write_that_fails_halfway_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"cannot write {path}: File too large\n", done.stderr
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


def test_a_folder_in_the_way_or_missing_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    for path, reason in ((tmp_path / "taken", "Is a directory"), (tmp_path / "absent" / "file", "No such file")):
        with pytest.raises(UserError, match=f"cannot write {path}: {reason}"):
            write_text(path, "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match="Permission denied"):
            write_text(tmp_path / "file", "new")
    finally:
        tmp_path.chmod(0o700)


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_text(tmp_path / "whole", "")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "whole")]
    assert modes[0] == modes[1]
