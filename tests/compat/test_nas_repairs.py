"""Repairs of NNI's NAS classes: what they mend, that stock NNI has the faults, and that they go off again."""

import dataclasses
from typing import Any

import nni
import pytest
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.space import RawFormatModelSpace, SimplifiedModelSpace
from nni.runtime.tuner_command_channel import TunerCommandChannel

from elm_nni.compat import nas_repairs
from elm_nni.compat.nas_repairs import NAS_FILES, NAS_REPAIRS, repaired_nas
from elm_nni.errors import UserError

from .nas_helpers import ALL, Toy, evaluate

SAMPLE = {"width": 2, "depth": 1, "layer": "wide"}


def frozen(kind: type = SimplifiedModelSpace) -> Any:
    return kind.from_model(Toy(), FunctionalEvaluator(evaluate, calls="calls")).freeze(SAMPLE)


def stock() -> list[Any]:
    return [SimplifiedModelSpace._dump, RawFormatModelSpace.freeze]


def test_a_dumped_model_names_its_architecture_and_loads_as_before() -> None:
    before = stock()
    assert "mutation_summary" not in frozen()._dump()
    with repaired_nas():
        assert stock() != before
        text = nni.dump(frozen())
        whole_space = SimplifiedModelSpace.from_model(Toy())._dump()
    assert stock() == before
    assert '"mutation_summary": {"width": 2, "depth": 1, "layer": "wide"}' in text
    # a worker that has only NNI reads it
    loaded = nni.load(text)
    assert isinstance(loaded, SimplifiedModelSpace)
    assert loaded.sample == SAMPLE
    assert "mutation_summary" not in whole_space


def test_a_raw_model_keeps_its_sample_while_the_grid_goes_on() -> None:
    def samples(space: Any) -> list[Any]:
        return [model.sample for model in list(space.grid())]

    space = RawFormatModelSpace.from_model(Toy())
    assert samples(space) == [{}] * len(ALL)
    with repaired_nas():
        assert sorted(map(str, map(sorted, map(dict.items, samples(space))))) == sorted(
            str(sorted(sample.items())) for sample in ALL
        )


def test_another_nni_is_refused_and_nothing_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    before = stock()
    changed = dataclasses.replace(NAS_REPAIRS[-1], known=dataclasses.replace(NAS_REPAIRS[-1].known, sha256="0" * 64))
    monkeypatch.setattr(nas_repairs, "NAS_REPAIRS", (*NAS_REPAIRS[:-1], changed))
    with pytest.raises(UserError, match=r"is not the file of nni 3.0"), repaired_nas():
        pass
    assert stock() == before


def test_the_installed_files_are_the_known_ones() -> None:
    for known in {*NAS_FILES, *(repair.known for repair in NAS_REPAIRS)}:
        known.check()


def test_a_resumed_manager_does_not_end_the_thread_that_listens() -> None:
    def channel() -> TunerCommandChannel:
        sent = [{"type": "FD", "content": "[]"}, {"type": "AD", "content": "[]"}, {"type": "GE", "content": "3"}]
        one = TunerCommandChannel("ws://127.0.0.1:1/tuner")
        one._channel.receive = lambda: sent.pop(0)
        return one

    with pytest.raises(ValueError, match="Unknown command type"):
        channel().receive()
    with repaired_nas():
        assert channel().receive().count == 3
