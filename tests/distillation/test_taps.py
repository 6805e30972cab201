import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from elm_nni.distillation.taps import Taps


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20
    )
    return BertModel(config).eval()


@pytest.fixture
def ids():
    return torch.arange(1, 9).view(2, 4)


def num_hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def test_collects_what_the_model_computes(model, ids):
    with Taps(model, {"first": "encoder.layer.0", "heads": "encoder.layer.1.attention.self"}) as taps:
        output = model(ids, output_hidden_states=True)
    torch.testing.assert_close(taps["first"], output.hidden_states[1])
    projection = model.encoder.layer[1].attention.output.dense
    with Taps(model, inputs={"context": "encoder.layer.1.attention.output.dense"}) as inputs:
        model(ids)
    torch.testing.assert_close(inputs["context"], taps["heads"])
    assert inputs["context"].shape[-1] == projection.in_features


def test_leaves_no_hooks(model, ids):
    before = num_hooks(model)
    with Taps(model, {"a": "encoder.layer.0"}, inputs={"b": "encoder.layer.1"}) as taps:
        assert num_hooks(model) == before + 2
        for _ in range(3):
            model(ids)
        taps.attach()
        assert num_hooks(model) == before + 2
    assert num_hooks(model) == before
    with pytest.raises(RuntimeError, match="inside"), Taps(model, {"a": "encoder.layer.0"}):
        raise RuntimeError("inside")
    assert num_hooks(model) == before
    taps.remove()
    assert num_hooks(model) == before


def test_keeps_every_forward_until_cleared(model, ids):
    with Taps(model, {"a": "encoder.layer.0"}) as taps:
        assert "a" not in taps
        assert taps.all("a") == []
        model(ids)
        model(ids + 1)
        assert len(taps.all("a")) == 2
        assert torch.equal(taps["a"], taps.all("a")[1])
        taps.clear()
        with pytest.raises(KeyError):
            taps["a"]


def test_gradient_flows_through(model, ids):
    with Taps(model, {"a": "encoder.layer.0"}) as taps:
        model(ids)
    taps["a"].square().sum().backward()
    assert model.encoder.layer[0].output.dense.weight.grad is not None
    assert model.encoder.layer[1].output.dense.weight.grad is None


def test_input_given_by_keyword():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x):
            return self.inner(input=x)

    model, x = Named(), torch.ones(2, 3)
    with Taps(model, inputs={"x": "inner"}) as taps:
        model(x)
    assert taps["x"] is x


def test_bad_input(model):
    with pytest.raises(ValueError, match=r"'encoder.layers.0'.*nearest is 'encoder.layer.0'"):
        Taps(model, {"a": "encoder.layers.0"})
    with pytest.raises(ValueError, match=r"\['a'\]"):
        Taps(model, {"a": "encoder"}, inputs={"a": "encoder"})
