"""Fewer attention heads where several say the same, judged by CKA; without NNI or Lightning (arXiv 2510.27037).

Shape suffixes: B batch, T tokens, D hidden, H heads, K head_dim, C = H * K channels of all heads, W output width.
"""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from elm_nni.analysis.cka import HeadSimilarity
from elm_nni.distillation.taps import Taps
from elm_nni.errors import UserError
from elm_nni.modeling import (
    BLOCKS,
    Attention,
    Block,
    ElmForCausalLM,
    ElmForMaskedLM,
    ElmForQuestionAnswering,
    ElmForSequenceClassification,
    ElmModel,
    ElmPreTrainedModel,
)
from elm_nni.modeling.blocks_elm import projection_names
from elm_nni.search_spaces.architecture import architecture_digest, layer_specs
from elm_nni.strategies.head_plan import (
    HeadPlan,
    LayerHeads,
    Matrix,
    PruneMode,
    Samples,
    as_matrix,
    check_settings,
    eta_sweep,
    fused_num_heads,
    judge,
)

logger = logging.getLogger(__name__)

Batch = Mapping[str, Tensor]
Model = TypeVar("Model", bound=nn.Module)

# Fewer sequences than this make CKA noisy.
MIN_SEQUENCES = 512
_MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "document_ids")
_CLASSES: dict[str, type[ElmPreTrainedModel]] = {
    one.__name__: one
    for one in (
        ElmModel,
        ElmForMaskedLM,
        ElmForCausalLM,
        ElmForSequenceClassification,
        ElmForQuestionAnswering,
    )
}

__all__ = [
    "MIN_SEQUENCES",
    "CkaHeadPruner",
    "HeadPlan",
    "LayerHeads",
    "eta_sweep",
    "fused_num_heads",
    "load_pruned",
    "slice_heads",
    "validate_plan",
]


class CkaHeadPruner:
    """Finds attention heads whose contexts are alike (unbiased linear CKA above ``eta``) and gives them up.

    Of a group of similar heads the first stays. ``remove`` takes the others out of all projections, which saves
    parameters. ``fuse`` (the paper's way) regroups the same channels into fewer, wider heads, which saves none:
    the head count becomes the next divisor of the layer's channels at or below the number of kept heads.

    Args:
        eta: CKA above which two heads are the same, in [0, 1].
        mode: ``"remove"`` or ``"fuse"``.
        min_heads: heads that every layer keeps at least, from 1; a layer that has fewer is left as it is.
        samples: ``"tokens"``: every valid token is a sample; ``"sequences"`` (the paper): every row of a batch is one,
            its tokens side by side, which needs batches of at least four rows.

    Raises:
        ValueError: a setting outside its range.

    Source: arXiv 2510.27037, pruning of heads; CKA: arXiv 1905.00414.

    Example::

        pruner = CkaHeadPruner(eta=0.9, mode="remove")
        smaller = pruner.apply(model, pruner.plan(model, batches))
    """

    def __init__(
        self, *, eta: float = 0.9, mode: PruneMode = "remove", min_heads: int = 2, samples: Samples = "tokens"
    ) -> None:
        check_settings(eta, mode, min_heads, samples)
        self.eta, self.mode, self.min_heads, self.samples = eta, mode, min_heads, samples

    def plan(self, model: nn.Module, batches: Iterable[Batch]) -> HeadPlan:
        """Compare the heads of every layer over the batches and decide which ones to give up.

        The model runs without dropout and gradients; its training modes are restored. Padding has no influence. A head
        with constant context is similar to none. Fewer than 512 sequences are warned of.

        Args:
            model: an ``ElmModel``, or any module that holds one.
            batches: dicts of (B, T) tensors: ``input_ids``, and optionally ``attention_mask``, ``token_type_ids`` and
                ``document_ids``; other keys are passed over. Read once, one at a time.

        Raises:
            UserError: the model holds not exactly one ``ElmModel``, or the batches hold no ``input_ids`` or no token.
            ValueError: too few samples for CKA (four), or features that are NaN.
        """
        encoder = _encoder(model)
        similarities, num_sequences = _measure(encoder, batches, self.samples)
        if num_sequences < MIN_SEQUENCES:
            logger.warning(
                "heads were compared on %d sequences; at least %d make the similarities reliable",
                num_sequences,
                MIN_SEQUENCES,
            )
        layers = tuple(
            judge(index, similarity.head_dim, _cka(similarity), self.eta, self.mode, self.min_heads)
            for index, similarity in enumerate(similarities)
        )
        return HeadPlan(
            eta=self.eta,
            mode=self.mode,
            min_heads=self.min_heads,
            samples=self.samples,
            num_sequences=num_sequences,
            source=encoder.config.architecture,
            layers=layers,
        )

    def apply(self, model: Model, plan: HeadPlan) -> Model:
        """A new model of the same class with the heads of ``plan.architecture``; ``model`` stays as it is.

        All other weights, the task heads, tied weights, dtype, device and training modes are copied. With
        ``remove``, outputs are unchanged up to rounding where the removed heads had no weight in the output projection.

        Raises:
            UserError: the plan was made for another architecture.
        """
        validate_plan(plan, model)
        pruned = copy.deepcopy(model)
        encoder = _encoder(pruned)
        # One configuration object serves the copy, its encoder and every block.
        encoder.config.layers = layer_specs(plan.architecture)
        for block, layer in zip(cast(Iterable[Block], encoder.layers), plan.layers):
            if layer.after != layer.before:
                kept = layer.kept if plan.mode == "remove" else range(layer.before)
                block.attention = _pruned_attention(block.attention, encoder.config, layer, kept)
        return pruned

    def cka_after(self, plan: HeadPlan, pruned: nn.Module, batches: Iterable[Batch]) -> HeadPlan:
        """The plan with ``cka_after`` measured on the pruned model, sampled as the plan was.

        Raises:
            UserError: as :meth:`plan`, or ``pruned`` has not the architecture that the plan gives.
        """
        encoder = _encoder(pruned)
        if (found := encoder.config.architecture) != plan.architecture:
            raise UserError(
                f"the pruned model has architecture {architecture_digest(found)}; it must be "
                f"{architecture_digest(plan.architecture)}, which the head plan gives"
            )
        similarities, _ = _measure(encoder, batches, plan.samples)
        layers = tuple(
            replace(layer, cka_after=_cka(similarity)) for layer, similarity in zip(plan.layers, similarities)
        )
        return replace(plan, layers=layers)


def validate_plan(plan: HeadPlan, model: nn.Module) -> None:
    """Refuse a plan that was made for another architecture than the model's.

    Raises:
        UserError: naming both architectures, or the model holds not exactly one ``ElmModel``.
    """
    if (found := architecture_digest(_encoder(model).config.architecture)) != plan.digest:
        raise UserError(
            f"the head plan is for architecture {plan.digest}, the model has {found}; plan the heads of this model"
        )


def load_pruned(folder: str | os.PathLike[str]) -> ElmPreTrainedModel:
    """The pruned model that ``save_pretrained`` wrote, of the class it was saved as, in evaluation mode.

    Nothing about pruning is needed to load it, so ``from_pretrained`` of that class does the same.

    Raises:
        UserError: the folder has no ``config.json``, or it names none of the classes of ``elm_nni.modeling``.

    Example::

        pruner.apply(model, plan).save_pretrained("pruned")
        model = load_pruned("pruned")
    """
    config_path = Path(folder) / "config.json"
    if not config_path.is_file():
        raise UserError(f"{folder} has no config.json; it must be a folder that save_pretrained wrote")
    names = json.loads(config_path.read_text(encoding="utf-8")).get("architectures") or []
    if len(names) != 1 or names[0] not in _CLASSES:
        raise UserError(f"{config_path} names the classes {names}; it must be one of {', '.join(_CLASSES)}")
    return _CLASSES[names[0]].from_pretrained(Path(folder)).eval()


def slice_heads(
    projections: Mapping[str, Tensor], output_weight: Tensor, *, kept: Sequence[int], head_dim: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Copies of the input projections and of the output projection that hold only the kept heads, in the order given.

    Args:
        projections: name to a weight (H * K, D) or a bias (H * K,), heads one after another along the first
            dimension. A projection that two roles share is one entry.
        output_weight: (W, H * K).
        kept: heads to keep, each once; at least one.
        head_dim: channels K of a head.

    Returns:
        The sliced projections under their names, and the output weight (W, len(kept) * K).

    Raises:
        ValueError: sizes that are not as many heads of ``head_dim``, or ``kept`` empty, repeated or out of range.

    Example::

        sliced, output_WC = slice_heads({"query.weight": query_CD}, output_WC, kept=[0, 2], head_dim=44)
    """
    if head_dim < 1:
        raise ValueError(f"head_dim={head_dim}: must be at least 1")
    num_channels = output_weight.shape[-1]
    for name, tensor in projections.items():
        if tensor.shape[0] != num_channels:
            raise ValueError(f"{name} has {tensor.shape[0]} rows: must be {num_channels}, as output_weight has columns")
    num_heads, rest = divmod(num_channels, head_dim)
    if rest:
        raise ValueError(f"head_dim={head_dim}: must divide the {num_channels} columns of output_weight")
    if not kept or len(set(kept)) < len(kept) or not set(kept) <= set(range(num_heads)):
        raise ValueError(f"kept={list(kept)}: must be distinct heads from 0 to {num_heads - 1}, at least one")
    channels = torch.arange(num_channels).view(num_heads, head_dim)[list(kept)].flatten()
    sliced = {name: tensor.index_select(0, channels.to(tensor.device)) for name, tensor in projections.items()}
    return sliced, output_weight.index_select(1, channels.to(output_weight.device))


def _pruned_attention(attention: Attention, config: Any, layer: LayerHeads, kept: Sequence[int]) -> Attention:
    """The attention of a fresh block with the new sizes and the kept heads' weights."""
    spec = config.layers[layer.layer]
    # On the meta device nothing is drawn at random and nothing is allocated.
    with torch.device("meta"):
        block = BLOCKS[spec["block"]](
            config, ffn_size=spec["ffn_size"], num_heads=spec["num_heads"], head_dim=spec["head_dim"]
        )
    state = attention.state_dict()
    inputs = {
        name: tensor for name, tensor in state.items() if name.split(".")[0] in projection_names(attention.sharing)
    }
    sliced, output_weight = slice_heads(inputs, state["output.weight"], kept=kept, head_dim=layer.head_dim_before)
    pruned = block.attention
    pruned.load_state_dict({**state, **sliced, "output.weight": output_weight}, assign=True)
    for old, new in zip(attention.modules(), pruned.modules(), strict=True):
        new.training = old.training
    for name, parameter in attention.named_parameters():
        pruned.get_parameter(name).requires_grad_(parameter.requires_grad)
    return pruned


def _measure(encoder: ElmModel, batches: Iterable[Batch], samples: Samples) -> tuple[list[HeadSimilarity], int]:
    """Similarities of every layer's heads, and how many rows with a valid token there were."""
    similarities = [HeadSimilarity(layer["num_heads"], layer["head_dim"], samples) for layer in encoder.config.layers]
    paths = {f"layer{index}": f"layers.{index}.attention.output" for index in range(len(similarities))}
    num_sequences = 0
    with _evaluating(encoder), torch.inference_mode(), Taps(encoder, inputs=paths) as taps:
        for batch in batches:
            inputs = _inputs(batch, encoder.device)
            keep_BT = _valid_tokens(inputs)
            rows_B = keep_BT.any(dim=1)
            num_sequences += int(rows_B.sum())
            encoder(**inputs)
            for name, similarity in zip(paths, similarities):
                context_BTC, valid_BT = taps[name][rows_B], keep_BT[rows_B]
                if samples == "sequences":
                    context_BTC, valid_BT = _left_aligned(context_BTC, valid_BT)
                similarity.update(context_BTC, valid_BT)
            taps.clear()
    if num_sequences == 0:
        raise UserError("batches hold no token; give at least one batch with a valid token")
    return similarities, num_sequences


def _cka(similarity: HeadSimilarity) -> Matrix:
    return as_matrix(similarity.matrix().tolist())


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within; each module's own mode is restored, for parts may be frozen in evaluation mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _encoder(model: nn.Module) -> ElmModel:
    encoders = [module for module in model.modules() if isinstance(module, ElmModel)]
    if len(encoders) != 1:
        raise UserError(
            f"{type(model).__name__} holds {len(encoders)} modules of class elm_nni.modeling.ElmModel; it must hold one"
        )
    return encoders[0]


def _inputs(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    if "input_ids" not in batch:
        raise UserError(f"a batch has the keys {sorted(batch)}; it must hold 'input_ids'")
    return {name: batch[name].to(device) for name in _MODEL_INPUTS if batch.get(name) is not None}


def _valid_tokens(inputs: Mapping[str, Tensor]) -> Tensor:
    keep_BT = torch.ones_like(inputs["input_ids"], dtype=torch.bool)
    if "attention_mask" in inputs:
        keep_BT &= inputs["attention_mask"] != 0
    if "document_ids" in inputs:
        keep_BT &= inputs["document_ids"] > 0
    return keep_BT


def _left_aligned(context_BTC: Tensor, keep_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Valid tokens first in each row, so that the n-th token meets the n-th token on whichever side the padding is."""
    order_BT = (~keep_BT).to(torch.uint8).argsort(dim=1, stable=True)
    return context_BTC.take_along_dim(order_BT[..., None], dim=1), keep_BT.take_along_dim(order_BT, dim=1)
