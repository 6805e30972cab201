"""Tuning files: what they hold, what is refused, and which stages a key builds again."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from elm_nni.errors import UserError
from elm_nni.tuning.estimate import builds
from elm_nni.tuning.tune_file import Tuning, first_stage, load_tuning

CONFIGURATION = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")


def test_a_file_is_read_with_its_types(tuning_file: Callable[..., Path]) -> None:
    space = {
        "prune.eta": {"type": "float", "low": 0.7, "high": 0.95},
        "supernet.pretrain.lr": {"type": "float", "low": "1e-4", "high": 1e-3, "log": True},
        "growth.top_k": {"type": "int", "low": 1, "high": 9, "step": 4},
        "distillation.features": {"type": "categorical", "choices": ["relational", "mse"]},
    }
    tuning = load_tuning(tuning_file(space=space, overrides={"search.generations": 1}, constraints={"params": 5e4}))
    assert tuning.space == {
        "prune.eta": FloatDistribution(0.7, 0.95),
        "supernet.pretrain.lr": FloatDistribution(1e-4, 1e-3, log=True),
        "growth.top_k": IntDistribution(1, 9, step=4),
        "distillation.features": CategoricalDistribution(("relational", "mse")),
    }
    config = tuning.config({"prune.eta": 0.8})
    assert (config.prune.eta, config.search.generations, config.space.num_layers) == (0.8, 1, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trial": 3}, "unknown key trial; did you mean trials?"),
        ({"base": None}, "base is missing"),
        ({"space": {}}, "space is missing"),
        ({"space": {"prune.eta": 0.3}}, "space.prune.eta: 0.3 is not allowed; it must have a type"),
        ({"space": {"prune.eta": {"type": "uniform"}}}, "type 'uniform' is not allowed; it must be one of float"),
        ({"space": {"prune.eta": {"type": "float", "min": 0}}}, "space.prune.eta: min is not allowed; float has low"),
        ({"space": {"prune.eta": {"type": "float", "low": 1.0, "high": 0.5}}}, "space.prune.eta"),
        ({"space": {"prune.eta": {"type": "float", "low": 0.5, "high": 1.5}}}, "prune.eta: 1.5 is not allowed"),
        ({"space": {"prune.etta": {"type": "float", "low": 0.5, "high": 0.9}}}, "did you mean prune.eta?"),
        ({"objectives": {"accuracy": "maximize"}}, "a trial measures validation, params, .*reviews"),
        ({"objectives": {"params": "smaller"}}, "objectives.params: 'smaller' is not allowed"),
        ({"objectives": {"params": "minimize", "validation": "maximize"}, "pruner": "median"}, "none with many"),
        ({"constraints": {"size": 3}}, "constraints: 'size'"),
        ({"constraints": {"params": "small"}}, "constraints.params: 'small'"),
        ({"trials": 0}, "trials: 0 is not allowed"),
        ({"pruner": "asha"}, "pruner: 'asha' is not allowed"),
        ({"overrides": ["a"]}, "overrides: \\['a'\\] is not allowed"),
        ({"proxy": {"prune.eta": 0.5}}, "prune.eta is tuned, so the proxy cannot set it"),
    ],
)
def test_a_mistake_is_one_line(tuning_file: Callable[..., Path], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_tuning(tuning_file(**changes))
    assert "\n" not in str(caught.value)


def test_the_first_stage_of_a_key_is_the_one_that_the_documentation_names() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| [^|]+ \| `[^`]+` \| [^|]+ \| ([^|]+) \|$", CONFIGURATION, flags=re.MULTILINE)
    assert len(rows) > 80
    for key, stages in rows:
        documented = re.split(r"[,; ]", stages)[0]
        expected = {"all": "precision", "none": "evaluate", "-": "evaluate"}.get(documented, documented)
        if key.startswith(("baselines.", "export.")):
            expected = "evaluate"
        assert first_stage(key.replace("[]", "")) == expected, key


def test_a_stage_is_built_once_for_each_setting_that_touches_it(tuning_file: Callable[..., Path]) -> None:
    space = {
        "growth.top_k": {"type": "categorical", "choices": [3, 6, 12]},
        "prune.eta": {"type": "float", "low": 0.5, "high": 0.9, "step": 0.1},
        "retrain.finetune.lr": {"type": "float", "low": 1e-4, "high": 1e-3},
    }
    tuning = load_tuning(tuning_file(space=space, trials=20))
    counts = [builds(tuning, stage) for stage in ("teacher", "supernet", "search", "prune", "pretrain", "finetune")]
    assert counts == [1, 3, 3, 15, 15, 20]


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[2] / "examples" / "optuna").glob("*.yaml")))
def test_the_examples_can_be_read(file: Path) -> None:
    assert load_tuning(file).trials > 1


def test_every_key_of_a_tuning_file_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "tuning.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`[^|]+) \|", page, flags=re.MULTILINE)
    assert {key for cell in cells for key in re.findall(r"`(\w+)`", cell)} == set(Tuning.__dataclass_fields__)
