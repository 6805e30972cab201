"""The stage store: built once, found again, resumed, cleaned; and the files it writes."""

import json
import os
import threading
import time

import pytest

from elm_nni.errors import UserError
from elm_nni.pipeline.store import StageStore, append_json_line, read_json_lines, write_json


def test_a_stage_is_built_once_and_found_again(tmp_path):
    store, calls = StageStore(tmp_path), []

    def build(folder):
        calls.append(folder)
        (folder / "x").write_text("1")

    first = store.build("supernet", {"seed": 0}, build)
    again = store.build("supernet", {"seed": 0}, build)
    other = store.build("supernet", {"seed": 1}, build)
    assert len(calls) == 2
    assert not first.cached
    assert again.cached
    assert first.folder == again.folder != other.folder
    assert store.finished("supernet", {"seed": 2}) is None


def test_a_failed_stage_keeps_its_folder_and_is_built_again(tmp_path):
    store = StageStore(tmp_path)

    def fail(folder):
        (folder / "checkpoint").write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        store.build("search", {}, fail)
    assert store.finished("search", {}) is None
    found = []
    store.build("search", {}, lambda folder: found.append((folder / "checkpoint").read_text()))
    assert found == ["half"]


def test_checkpoints_serve_an_unfinished_stage_and_go_with_its_end(tmp_path):
    store, found = StageStore(tmp_path), []

    def fail(folder):
        (folder / "checkpoints" / "step-3").mkdir(parents=True)
        raise RuntimeError("killed")

    def finish(folder):
        found.extend(path.name for path in (folder / "checkpoints").iterdir())
        (folder / "model").write_text("1")

    with pytest.raises(RuntimeError):
        store.build("pretrain", {}, fail)
    result = store.build("pretrain", {}, finish)
    assert found == ["step-3"]
    assert sorted(path.name for path in result.folder.iterdir()) == ["model", "stage.json"]


def test_seconds_count_killed_attempts_up_to_their_last_file(tmp_path):
    store = StageStore(tmp_path)

    def fail(folder):
        (folder / "checkpoint").write_text("half")
        raise RuntimeError("killed")

    for left, others in ((100.0, 0.0), (30.0, 100.0)):
        with pytest.raises(RuntimeError):
            store.build("search", {}, fail)
        attempt = store.folder("search", {}) / "attempt.json"
        noted = json.loads(attempt.read_text())
        assert noted["spent"] == pytest.approx(others, abs=2)
        os.utime(attempt.parent / "checkpoint", (noted["start"] + left,) * 2)
    result = store.build("search", {}, lambda folder: None)
    assert result.seconds == pytest.approx(130, abs=2)
    assert not attempt.exists()


def test_of_two_builders_one_builds_and_the_other_waits(tmp_path):
    store, calls = StageStore(tmp_path), []

    def build(folder):
        time.sleep(0.3)
        calls.append(folder)

    threads = [threading.Thread(target=store.build, args=("supernet", {}, build)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_collect_removes_what_is_not_kept(tmp_path):
    store = StageStore(tmp_path)
    kept = store.build("a", {"x": 1}, lambda folder: (folder / "f").write_bytes(b"0" * 100))
    gone = store.build("a", {"x": 2}, lambda folder: (folder / "f").write_bytes(b"0" * 100))
    assert store.collect({kept.folder.resolve()}) > 100
    assert kept.folder.exists()
    assert not gone.folder.exists()


def test_a_store_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot write"):
        StageStore(tmp_path / "file").build("a", {}, lambda folder: None)


def test_a_full_disk_is_one_line(tmp_path):
    def full(folder):
        raise OSError(28, "No space left on device", str(folder / "weights"))

    with pytest.raises(UserError, match="No space left on device"):
        StageStore(tmp_path).build("a", {}, full)


def test_a_torn_last_line_is_cut_off_and_others_are_refused(tmp_path):
    path = tmp_path / "history.jsonl"
    for number in range(3):
        append_json_line(path, {"number": number})
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    assert [line["number"] for line in read_json_lines(path)] == [0, 1]
    append_json_line(path, {"number": 2})
    assert path.read_bytes() == whole
    path.write_bytes(whole.replace(b'{"number": 1}', b'{"number": '))
    with pytest.raises(UserError, match="line 2"):
        read_json_lines(path)


def test_json_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "state.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_json_keeps_the_order_of_its_keys(tmp_path):
    write_json(tmp_path / "state.json", {"teacher": {"seconds": 1, "cached": False}, "evaluate": 2, "latency": 3})
    found = json.loads((tmp_path / "state.json").read_text())
    assert list(found) == ["teacher", "evaluate", "latency"]
    assert list(found["teacher"]) == ["seconds", "cached"]


def test_json_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "state.json").mkdir()
    with pytest.raises(UserError, match="cannot write .*state.json"):
        write_json(tmp_path / "state.json", {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]
