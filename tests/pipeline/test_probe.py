"""The metric that every epoch and generation has in common, and how a run tells it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from elm_nni.data.batches import TaskRows
from elm_nni.pipeline.config import load_config
from elm_nni.pipeline.context import Context
from elm_nni.pipeline.probe import Point, Probe, read_points
from elm_nni.pipeline.runner import Run
from elm_nni.pipeline.store import StageStore
from elm_nni.pipeline.supernet_stage import make_space
from elm_nni.strategies import set_path, to_supernet


@pytest.fixture
def context(config_file: Path, tmp_path: Path) -> Context:
    config = load_config(str(config_file), {"supernet.probe_rows": 400})
    return Context(config, StageStore(tmp_path), lambda event, **values: None)


def test_it_is_the_score_of_a_linear_head_on_the_paths_features(context: Context) -> None:
    space = to_supernet(make_space(context))
    task, path = context.tasks["reviews"], {"layer0": "bert", "layer1": "mobile"}
    found = Probe(context)(space, [path])

    assert context.settings.pooling == "mean"
    set_path(space.eval(), path)

    def features(rows: TaskRows) -> np.ndarray:
        with torch.no_grad():
            found = [space(rows[index]["input_ids"][None])[0].mean(0) for index in range(len(rows))]
            return torch.stack(found).numpy()

    train, validation = features(task.train), features(task.validation)
    mean, deviation = train.mean(0), train.std(0)
    scores = [
        LogisticRegression(C=1 / (penalty * len(train)), max_iter=1000)
        .fit((train - mean) / deviation, task.train.labels)
        .score((validation - mean) / deviation, task.validation.labels)
        for penalty in 10.0 ** np.arange(-6, 3)
    ]
    assert min(scores) - 1e-6 <= found <= max(scores) + 1e-6
    assert found > 0.8


def test_it_changes_neither_weights_nor_mode_nor_generator(context: Context) -> None:
    space = to_supernet(make_space(context)).train()
    before = {name: value.clone() for name, value in space.state_dict().items()}
    state = torch.get_rng_state()
    probe = Probe(context)
    assert probe(space) == probe(space)
    assert torch.equal(torch.get_rng_state(), state)
    assert space.training
    assert all(torch.equal(value, before[name]) for name, value in space.state_dict().items())


@pytest.mark.slow
def test_a_run_tells_every_epoch_and_generation_once_and_in_order(config_file: Path, tmp_path: Path) -> None:
    config = load_config(str(config_file))
    first, again, other = [], [], []
    run = Run(config, StageStore(tmp_path / "store"), tmp_path / "a", observe=first.append)
    run.search()
    assert [(point.phase, point.step) for point in first] == [
        ("supernet", 4), ("supernet", 8), ("supernet_tasks", 4), ("supernet_tasks", 8),
        ("search", 0), ("search", 1), ("search", 2),
    ]  # fmt: skip
    assert all(0 <= point.metric <= 1 for point in first)
    assert [point.loss is None for point in first] == [False] * 4 + [True] * 3
    events = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert [event["metric"] for event in events if event["event"] == "probe"] == [point.metric for point in first]

    cached = Run(config, StageStore(tmp_path / "store"), tmp_path / "b", observe=again.append)
    cached.search()
    cached.search()
    assert again == first
    assert not cached.trained

    off = load_config(str(config_file), {"supernet.probe_rows": 0})
    silent = Run(off, StageStore(tmp_path / "store"), tmp_path / "c", observe=other.append)
    silent.search()
    assert not silent.trained
    assert other == []


def test_a_killed_stage_tells_its_points_again_and_measures_none_twice(context: Context, tmp_path: Path) -> None:
    from elm_nni.pipeline.probe import ProbeRecorder

    space = to_supernet(make_space(context))
    told: list[Point] = []
    context.observe = told.append
    ProbeRecorder(context, space, tmp_path, "supernet").record(4, loss=0.5)
    recorder = ProbeRecorder(context, space, tmp_path, "supernet")
    recorder.record(4, loss=0.7)
    recorder.record(8, loss=0.25)
    assert [(point.step, point.loss) for point in told] == [(4, 0.5), (4, 0.5), (8, 0.25)]
    assert read_points(context, tmp_path) == [told[0], told[2]]
