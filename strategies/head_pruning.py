"""Fewer attention heads where several say the same, judged by CKA; without NNI or Lightning (arXiv 2510.27037).

Shape suffixes: B batch, T tokens, D hidden, H heads, K head_dim, C = H * K channels of all heads.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from elm_nni.analysis.cka import HeadSimilarity
from elm_nni.distillation.taps import Taps
from elm_nni.errors import UserError, first_line
from elm_nni.modeling import ElmModel, ElmPreTrainedModel
from elm_nni.modeling.saved import load_saved
from elm_nni.search_spaces.architecture import architecture_digest
from elm_nni.strategies.elm_heads import ElmHeads, slice_heads
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
    head_sizes,
    judge,
)
from elm_nni.strategies.stock_heads import MAP_FILE, StockHeads, load_stock, save_stock

logger = logging.getLogger(__name__)

Batch = Mapping[str, Tensor]
Model = TypeVar("Model", bound=nn.Module)

# Fewer sequences than this make CKA noisy.
MIN_SEQUENCES = 512

__all__ = [
    "MIN_SEQUENCES",
    "CkaHeadPruner",
    "HeadPlan",
    "LayerHeads",
    "eta_sweep",
    "fused_num_heads",
    "load_pruned",
    "save_pruned",
    "slice_heads",
    "validate_plan",
]


class CkaHeadPruner:
    """Finds attention heads whose contexts are alike (unbiased linear CKA above ``eta``) and gives them up.

    Of a group of similar heads the first stays. ``remove`` takes the others out of all projections, which saves
    parameters. ``fuse`` (the paper's way) regroups the same channels into fewer, wider heads, which saves none:
    the head count becomes the next divisor of the layer's channels at or below the number of kept heads.

    It takes our ``ElmModel``, and of transformers the classes around BERT's, RoBERTa's, DistilBERT's and GPT-2's
    self-attention (``BertModel``, ``RobertaForSequenceClassification``, ``GPT2LMHeadModel``, ...), or a module of your
    own that holds one of them. Cross-attention, subclasses of those attentions, adapters and quantised layers are
    refused. A pruned stock model still is of its stock class and runs, trains and generates as before, but its
    configuration cannot say its heads: keep it by :func:`save_pruned`.

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
            model: an ``ElmModel``, a stock model, or any module that holds one.
            batches: dicts of (B, T) tensors: ``input_ids``, and optionally ``attention_mask``, ``token_type_ids``,
                for an ``ElmModel`` ``document_ids`` and for a stock model ``position_ids``; other keys, and those that
                the model does not take, are passed over. Read once, one at a time.

        Raises:
            UserError: the model holds not exactly one encoder, or attention that is not known (named, with the known
                ones); the batches hold no ``input_ids``, no token, or packed documents for a stock model.
            ValueError: too few samples for CKA (four), or features that are NaN.
        """
        heads = heads_of(model)
        similarities, num_sequences = _measure(heads, batches, self.samples)
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
            source=heads.architecture,
            layers=layers,
        )

    def apply(self, model: Model, plan: HeadPlan) -> Model:
        """A new model of the same class with the heads of ``plan.architecture``; ``model`` stays as it is.

        All other weights, the task heads, tied weights, dtype, device and training modes are copied. With
        ``remove``, outputs are unchanged up to rounding where the removed heads had no weight in the output projection.
        A stock model's configuration is left as it is: its ``num_attention_heads`` is the number before.

        Raises:
            UserError: the plan was made for another architecture.
        """
        validate_plan(plan, model)
        pruned = copy.deepcopy(model)
        heads_of(pruned).prune(plan)
        return pruned

    def cka_after(self, plan: HeadPlan, pruned: nn.Module, batches: Iterable[Batch]) -> HeadPlan:
        """The plan with ``cka_after`` measured on the pruned model, sampled as the plan was.

        Raises:
            UserError: as :meth:`plan`, or ``pruned`` has not the architecture that the plan gives.
        """
        heads = heads_of(pruned)
        if (found := heads.architecture) != plan.architecture:
            raise UserError(
                f"the pruned model has architecture {architecture_digest(found)}; it must be "
                f"{architecture_digest(plan.architecture)}, which the head plan gives"
            )
        similarities, _ = _measure(heads, batches, plan.samples)
        layers = tuple(
            replace(layer, cka_after=_cka(similarity)) for layer, similarity in zip(plan.layers, similarities)
        )
        return replace(plan, layers=layers)


def validate_plan(plan: HeadPlan, model: nn.Module) -> None:
    """Refuse a plan that was made for another architecture than the model's.

    Raises:
        UserError: naming both architectures, or as :meth:`CkaHeadPruner.plan` of the model.
    """
    if (found := architecture_digest(heads_of(model).architecture)) != plan.digest:
        raise UserError(
            f"the head plan is for architecture {plan.digest}, the model has {found}; plan the heads of this model"
        )


def save_pruned(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Write a model that :meth:`CkaHeadPruner.apply` gave (fine-tuned since, or not) so that ``load_pruned`` reads it.

    An ``ElmModel`` or one of its task models is written by its ``save_pretrained``. Stock classes of transformers have
    one number of heads for all layers and one head_dim that follows from it, so their ``from_pretrained`` cannot load
    unequal layers. Weights of a stock model are therefore written as ``model.pruned.safetensors``, which
    ``from_pretrained`` does not look for: it ends with "no file named model.safetensors". ``head_map.json`` beside them
    has the class, and heads and head_dim of each layer as they are in the model. After a plain ``save_pretrained``
    instead, ``from_pretrained`` ends with mismatched sizes (``remove``) or has, unnoticed, the heads before (``fuse``).

    Raises:
        UserError: not an ``ElmModel`` or a model of a class of transformers, or one that cannot be pruned.

    Example::

        save_pruned(pruner.apply(model, plan), "pruned")
        model = load_pruned("pruned")
    """
    if isinstance(model, ElmPreTrainedModel):
        model.save_pretrained(folder)
    else:
        save_stock(model, folder)


def load_pruned(folder: str | os.PathLike[str]) -> PreTrainedModel:
    """The model that :func:`save_pruned` wrote, of the class it was saved as, in evaluation mode.

    An ``ElmModel``, or one of its task models, is also loaded by ``from_pretrained`` of its class; its configuration
    has its heads.

    Raises:
        UserError: the folder has no ``config.json``, no head map and none of our classes, or is damaged.

    Example::

        model = load_pruned("pruned")
        model(input_ids, attention_mask).last_hidden_state
    """
    if (Path(folder) / MAP_FILE).is_file():
        return load_stock(folder)
    config_path = Path(folder) / "config.json"
    if not config_path.is_file():
        raise UserError(f"{folder} has no config.json; it must be a folder that save_pruned wrote")
    try:
        return load_saved(folder).eval()
    except (OSError, ValueError) as error:
        raise UserError(f"{first_line(error)}, or {MAP_FILE} of save_pruned must be beside it") from error


def heads_of(model: nn.Module) -> ElmHeads | StockHeads:
    """The attention heads of the one encoder in ``model``.

    Raises:
        UserError: as :meth:`CkaHeadPruner.plan` of the model.
    """
    encoders = [module for module in model.modules() if isinstance(module, ElmModel)]
    if len(encoders) > 1:
        raise UserError(f"{type(model).__name__} holds {len(encoders)} modules of class ElmModel; it must hold one")
    return ElmHeads(encoders[0]) if encoders else StockHeads(model)


def _measure(
    heads: ElmHeads | StockHeads, batches: Iterable[Batch], samples: Samples
) -> tuple[list[HeadSimilarity], int]:
    """Similarities of every layer's heads, and how many rows with a valid token there were."""
    encoder = heads.encoder
    sizes = head_sizes(heads.architecture)
    similarities = [HeadSimilarity(num_heads, head_dim, samples) for num_heads, head_dim in sizes]
    paths = {f"layer{index}": path for index, path in enumerate(heads.outputs)}
    num_sequences = 0
    with _evaluating(encoder), torch.inference_mode(), Taps(encoder, inputs=paths) as taps:
        for batch in batches:
            inputs = _inputs(batch, heads)
            keep_BT = _valid_tokens(inputs)
            rows_B = keep_BT.any(dim=1)
            num_sequences += int(rows_B.sum())
            encoder(**inputs, **heads.settings)
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


def _inputs(batch: Batch, heads: ElmHeads | StockHeads) -> dict[str, Tensor]:
    if "input_ids" not in batch:
        raise UserError(f"a batch has the keys {sorted(batch)}; it must hold 'input_ids'")
    if batch.get("document_ids") is not None and "document_ids" not in heads.input_names:
        name = type(heads.encoder).__name__
        raise UserError(f"a batch has 'document_ids'; {name} cannot tell packed documents apart, give it one a row")
    device = heads.encoder.device
    return {name: batch[name].to(device) for name in heads.input_names if batch.get(name) is not None}


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
