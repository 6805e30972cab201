"""NNI's search spaces drawn through Optuna, against NNI's own reading of them."""

import math
from typing import Any

import numpy as np
import optuna
import pytest
from nni.common.hpo_utils.formatting import deformat_parameters, format_parameters, format_search_space
from optuna.distributions import IntDistribution
from scipy import stats

from elm_nni.tuning.nni_space import NniSpace

SPACE: dict[str, Any] = {
    "activation": {"_type": "choice", "_value": ["relu", "gelu"]},
    "mixed": {"_type": "choice", "_value": [1, True, 1.0, [3, 4], None]},
    "depth": {"_type": "randint", "_value": [2, 6]},
    "dropout": {"_type": "uniform", "_value": [0.0, 0.5]},
    "width": {"_type": "quniform", "_value": [8, 64, 8]},
    "share": {"_type": "quniform", "_value": [0.1, 0.55, 0.1]},
    "rate": {"_type": "loguniform", "_value": [1e-5, 1e-1]},
    "units": {"_type": "qloguniform", "_value": [4, 100, 4]},
    "shift": {"_type": "normal", "_value": [3, 2]},
    "steps": {"_type": "qnormal", "_value": [100, 30, 10]},
    "scale": {"_type": "lognormal", "_value": [0, 1]},
    "size": {"_type": "qlognormal", "_value": [3, 1, 2]},
    "block": {
        "_type": "choice",
        "_value": [
            {"_name": "conv", "kernel": {"_type": "choice", "_value": [1, 3]}},
            {
                "_name": "attention", "heads": {"_type": "randint", "_value": [1, 5]},
                "form": {
                    "_type": "choice",
                    "_value": [
                        {"_name": "full"}, {"_name": "local", "window": {"_type": "quniform", "_value": [2, 8, 2]}},
                    ],
                },
            },
        ],
    },
}  # fmt: skip


def draws(space: dict[str, Any], number: int, seed: int = 0) -> list[tuple[optuna.Trial, dict[str, Any]]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    found = []
    for _ in range(number):
        trial = study.ask()
        found.append((trial, NniSpace(space).draw(trial._suggest)))
    return found


def test_every_draw_is_one_that_nni_reads() -> None:
    # NNI's own reader fails on a choice nested in a choice that was not taken
    space = {**SPACE, "block": {"_type": "choice", "_value": [SPACE["block"]["_value"][0], {"_name": "none"}]}}
    formatted = format_search_space(space)
    for _, parameters in draws(space, 200):
        again = deformat_parameters(format_parameters(parameters, formatted), formatted)
        # mixed: NNI looks a value up by equality, and 1 == True == 1.0
        assert {**again, "mixed": None} == {
            name: pytest.approx(value) if isinstance(value, float) else value
            for name, value in {**parameters, "mixed": None}.items()
        }


def test_all_values_of_finite_types_come_up_and_no_others() -> None:
    found = [parameters for _, parameters in draws(SPACE, 400)]
    names = ("mixed", "depth", "width", "share")
    seen = {name: sorted({repr(parameters[name]) for parameters in found}) for name in names}
    assert seen["mixed"] == sorted(["1", "True", "1.0", "[3, 4]", "None"])
    assert seen["depth"] == ["2", "3", "4", "5"]
    assert seen["width"] == sorted(repr(value) for value in range(8, 65, 8))
    assert seen["share"] == ["0.1", "0.2", "0.3", "0.4", "0.5"]
    blocks = [parameters["block"] for parameters in found]
    assert {block["_name"]: set(block) for block in blocks} == {
        "conv": {"_name", "kernel"}, "attention": {"_name", "heads", "form"},
    }  # fmt: skip
    forms = [block["form"] for block in blocks if block["_name"] == "attention"]
    assert {form["_name"]: sorted(form) for form in forms} == {"full": ["_name"], "local": ["_name", "window"]}


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("dropout", stats.uniform(0, 0.5)),
        ("rate", stats.loguniform(1e-5, 1e-1)),
        ("shift", stats.norm(3, 2)),
        ("scale", stats.lognorm(1)),
    ],
)
def test_values_have_the_distribution_that_nni_states(name: str, reference: Any) -> None:
    values = [parameters[name] for _, parameters in draws({name: SPACE[name]}, 1500)]
    assert stats.kstest(values, reference.cdf).pvalue > 1e-3


def test_rounded_types_are_the_rounded_values_of_the_plain_ones() -> None:
    for name, q, low, high in (("units", 4, 4, 100), ("steps", 10, -np.inf, np.inf), ("size", 2, -np.inf, np.inf)):
        for trial, parameters in draws({name: SPACE[name]}, 100):
            raw = trial.params[name]
            if name == "steps":
                raw = stats.norm(100, 30).ppf(raw)
            elif name == "size":
                raw = math.exp(stats.norm(3, 1).ppf(raw))
            assert parameters[name] == pytest.approx(min(max(round(raw / q) * q, low), high))


def test_encoding_is_the_inverse_of_drawing() -> None:
    exact = {name: SPACE[name] for name in SPACE if name not in ("units", "steps", "size")}
    for trial, parameters in draws(exact, 50):
        values, distributions = NniSpace(exact).encode(parameters)
        assert values == {
            name: pytest.approx(value) if isinstance(value, float) else value for name, value in trial.params.items()
        }
        assert distributions == trial.distributions


def test_a_grid_holds_every_combination() -> None:
    space = {name: SPACE[name] for name in ("activation", "depth", "width", "share")}
    grid = NniSpace(space).grid()
    assert {name: len(values) for name, values in grid.items()} == {"activation": 2, "depth": 4, "width": 8, "share": 5}
    assert isinstance(NniSpace(space)._leaves[2].distribution, IntDistribution)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"_type": "choice"}, "must have _type and _value"),
        ({"_type": "choice", "_value": []}, "must be a list"),
        ({"_type": "gauss", "_value": [0, 1]}, "'gauss'; allowed: choice, randint"),
        ({"_type": "uniform", "_value": [1, 0]}, "range 1 to 0; it must be rising"),
        ({"_type": "uniform", "_value": [0, 1, 2]}, r"must be 2 numbers"),
        ({"_type": "loguniform", "_value": [0, 1]}, "begins at 0; it must be above 0"),
        ({"_type": "quniform", "_value": [0, 1, 0]}, "has q 0; it must be above 0"),
        ({"_type": "quniform", "_value": [1.1, 1.9, 1]}, "no multiple of 1"),
        ({"_type": "normal", "_value": [0, 0]}, "deviation 0"),
        ({"_type": "randint", "_value": [0.5, 3]}, "whole numbers"),
    ],
)
def test_a_wrong_parameter_is_named(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"'x'.*{message}"):
        NniSpace({"x": spec})


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="it must be names with _type"):
        NniSpace({})
    space = NniSpace({name: SPACE[name] for name in ("activation", "depth", "block")})
    good = {"activation": "relu", "depth": 3, "block": {"_name": "conv", "kernel": 3}}
    assert space.encode(good)[0] == {"activation": "relu", "depth": 3, "block": "conv", "block/conv/kernel": 3}
    for change, message in (
        ({"activation": "tanh"}, "'activation': the space does not hold 'tanh'"), ({"depth": 6}, "'depth'.*6"),
        ({"block": {"_name": "pool"}}, "'block'.*'pool'"),
        ({"block": {"_name": "conv"}}, "'block/conv/kernel' is missing"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            space.encode(good | change)
    for name, message in (("rate", "continuous"), ("block", "nested choice")):
        with pytest.raises(ValueError, match=message):
            NniSpace({name: SPACE[name]}).grid()
