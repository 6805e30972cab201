"""One architecture, four ways: supernet path, frozen subnet, plain model, and NNI's own rebuilding."""

import nni
import pytest
import torch
from nni.mutable import Categorical
from nni.nas.space import SimplifiedModelSpace, model_context
from torch import Tensor, nn

from elm_nni.modeling import BLOCKS, ElmConfig, ElmModel
from elm_nni.search_spaces import ElmSpace
from elm_nni.search_spaces.architecture import BLOCK_NAMES
from elm_nni.strategies import set_path, to_supernet

from .space_helpers import randomize

Batch = dict[str, Tensor]


@torch.no_grad()
def close(actual: Tensor, expected: Tensor) -> bool:
    return float((actual - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))


def test_labels_are_one_choice_a_layer_and_one_width_a_candidate(space: ElmSpace) -> None:
    mutables = space.simplify()
    expected = {f"layer{i}": list(BLOCK_NAMES) for i in range(2)}
    expected |= {f"layer{i}_{block}_ffn": [8, 16, 24] for i in range(2) for block in BLOCK_NAMES}
    assert all(isinstance(mutable, Categorical) for mutable in mutables.values())
    assert {label: list(mutable.values) for label, mutable in mutables.items()} == expected
    assert list(BLOCKS) == list(BLOCK_NAMES)


def test_random_samples_are_canonical_and_reach_every_block_and_width(space: ElmSpace) -> None:
    generator = torch.Generator().manual_seed(0)
    samples = [space.random_sample(generator) for _ in range(200)]
    assert all(space.canonical(sample) == sample for sample in samples)
    assert {sample["layer1"] for sample in samples} == set(BLOCK_NAMES)
    assert {sample.get("layer0_bert_ffn") for sample in samples} == {None, 8, 16, 24}
    widths = {f"layer{i}_{block}": 16 for i in range(2) for block in BLOCK_NAMES}
    fixed = space.random_sample(generator, widths=widths)
    assert {value for label, value in fixed.items() if label.endswith("_ffn")} == {16}


def test_supernet_frozen_and_plain_model_agree_on_fifty_architectures(space: ElmSpace, batch: Batch) -> None:
    supernet = to_supernet(space).eval()
    randomize(supernet)
    generator = torch.Generator().manual_seed(3)
    weight_BTD = torch.randn(3, 7, 24, generator=generator)
    outputs = []
    for _ in range(50):
        sample = space.random_sample(generator)
        set_path(supernet, sample)
        supernet.zero_grad()
        path_BTD = supernet(**batch)
        (path_BTD * weight_BTD).sum().backward()

        frozen = supernet.freeze(sample).eval()
        frozen.zero_grad()
        frozen_BTD = frozen(**batch)
        (frozen_BTD * weight_BTD).sum().backward()
        assert close(path_BTD, frozen_BTD)

        plain = ElmModel(space.architecture_config(sample)).eval()
        plain.load_state_dict(frozen.state_dict())
        assert close(plain(**batch).last_hidden_state, frozen_BTD)
        check_gradients(supernet, frozen, sample)
        outputs.append(path_BTD.detach())
    assert not close(outputs[0], outputs[1])


def check_gradients(supernet: nn.Module, frozen: nn.Module, sample: dict) -> None:
    shared = dict(supernet.named_parameters())
    for name, parameter in frozen.named_parameters():
        if name.startswith("layers."):
            _, index, rest = name.split(".", 2)
            name = f"layers.{index}.{sample[f'layer{index}']}.{rest}"
        expected, actual = parameter.grad, shared.pop(name).grad
        if actual.shape != expected.shape:
            used = tuple(slice(size) for size in expected.shape)
            assert float(actual.abs().sum()) == pytest.approx(float(actual[used].abs().sum())), name
            actual = actual[used]
        assert close(actual, expected), name
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in shared.values())


def test_model_context_rebuilds_from_a_canonical_sample(space: ElmSpace, tiny: dict[str, int]) -> None:
    sample = space.random_sample(torch.Generator().manual_seed(0))
    with model_context(sample):
        rebuilt = ElmSpace(**tiny)
    ElmModel(space.architecture_config(sample)).load_state_dict(rebuilt.state_dict())


def test_super_kernels_start_like_every_other_weight() -> None:
    supernet = to_supernet(ElmSpace.preset("nano", vocab_size=50))
    for cell in supernet.cells().values():
        assert float(cell.up.weight.std()) == pytest.approx(0.02, rel=0.1)
        assert not cell.up.bias.any()


def test_a_trial_can_carry_the_space() -> None:
    space = ElmSpace.preset("elm-tiny", vocab_size=50)
    assert len(nni.dump(space.trace_kwargs)) < 4096
    sample = {label: mutable.values[-1] for label, mutable in space.simplify().items()}
    carried = nni.load(nni.dump(SimplifiedModelSpace.from_model(space).freeze(sample)))
    model = carried.executable_model()
    assert space.canonical(sample) == space.architecture_config(sample).architecture
    ElmModel(space.architecture_config(sample)).load_state_dict(model.state_dict())


class Gate(nn.Module):
    """A block of a user's own, that shares no code with the six."""

    def __init__(
        self, config: ElmConfig, *, ffn_size: int, num_heads: int, head_dim: int, feed_forward: type[nn.Module]
    ) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, num_heads * head_dim)
        self.ffn = feed_forward(config.hidden_size, ffn_size, "relu")

    @classmethod
    def attention_width(cls, config: ElmConfig) -> int:
        return config.hidden_size

    def forward(self, hidden_BTD: Tensor, mask: Tensor | None, cache: None, layer_idx: int) -> Tensor:
        return hidden_BTD + self.ffn(hidden_BTD * self.gate(hidden_BTD).sigmoid())


def test_a_block_class_of_the_user_is_searched_with_the_others(tiny: dict[str, int], batch: Batch) -> None:
    space = ElmSpace(**tiny, blocks={"bert": BLOCKS["bert"], "gate": Gate})
    assert "layer1_gate_ffn" in space.simplify()
    supernet = to_supernet(space).eval()
    sample = space.canonical({"layer0": "gate", "layer0_gate_ffn": 16, "layer1": "bert", "layer1_bert_ffn": 24})
    set_path(supernet, sample)
    assert close(supernet(**batch), supernet.freeze(sample).eval()(**batch))
    assert type(supernet.freeze(sample).layers[0]) is Gate


def test_an_empty_set_of_blocks_is_refused(tiny: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="blocks"):
        ElmSpace(**tiny, blocks={})
