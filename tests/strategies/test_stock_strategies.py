"""NNI's own strategies on an ElmSpace, through NNI's own experiment."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nni
import pytest
import torch
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.strategy import DARTS, GumbelDARTS, Proxyless, Random, RandomOneShot, RegularizedEvolution

from elm_nni.modeling import ElmModel
from elm_nni.search_spaces import ElmSpace
from elm_nni.strategies import set_path

from .strategy_helpers import evaluator, run, sequential


def count(model: torch.nn.Module) -> None:
    nni.report_final_result(float(sum(parameter.numel() for parameter in model.parameters())))


@pytest.mark.parametrize("model_format", ["raw", "simplified"])
@pytest.mark.parametrize(
    "strategy", [lambda: Random(seed=0), lambda: RegularizedEvolution(population_size=2, sample_size=1, seed=0)]
)
def test_multi_trial(space: ElmSpace, home: Path, strategy: Callable[[], Any], model_format: str) -> None:
    experiment = run(space, FunctionalEvaluator(count), strategy(), sequential(home, model_format, max_models=3))
    best = experiment.export_top_models()[0]
    with torch.device("meta"):
        plain = ElmModel(space.architecture_config(best.sample))
    assert best.metric == sum(parameter.numel() for parameter in plain.parameters())
    assert best.metric == max(model.metric for model in experiment.strategy.list_models(sort=False))


@pytest.mark.parametrize("strategy", [RandomOneShot, DARTS, GumbelDARTS, Proxyless])
def test_one_shot(space: ElmSpace, home: Path, strategy: Callable[[], Any]) -> None:
    before = space.embeddings.tokens.weight.detach().clone()
    experiment = run(space, evaluator(home, max_epochs=1), strategy(), sequential(home))
    sample = experiment.export_top_models(formatter="dict")[0]
    assert not torch.equal(space.embeddings.tokens.weight, before)
    frozen = space.freeze(sample)
    plain = ElmModel(space.architecture_config(sample))
    plain.load_state_dict(frozen.state_dict())
    ids_BT = torch.tensor([[5, 6, 7]])
    assert torch.equal(plain.eval()(ids_BT).last_hidden_state, frozen.eval()(ids_BT))


def test_the_blocks_of_a_proxyless_supernet_get_the_mask(space: ElmSpace) -> None:
    supernet = Proxyless().mutate_model(space).eval()
    sample = {label: mutable.values[0] for label, mutable in space.simplify().items()}
    set_path(supernet, sample)
    ids_BT, mask_BT = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[1, 1, 0, 0]])
    padded_BTD = supernet(ids_BT, mask_BT)[:, :2]
    assert torch.allclose(padded_BTD, supernet(ids_BT[:, :2]), atol=1e-6)
    assert not torch.allclose(padded_BTD, supernet(ids_BT)[:, :2], atol=1e-3)
