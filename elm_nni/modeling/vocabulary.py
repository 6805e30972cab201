"""Models with a part of their vocabulary."""

import copy
import operator
from collections import Counter
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import nn

from .base_elm import ElmPreTrainedModel

Model = TypeVar("Model", bound=ElmPreTrainedModel)

_SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")


def select_tokens(model: Model, kept_ids: Iterable[int]) -> Model:
    """A copy of the model that knows only these tokens; token ``kept_ids[i]`` has the id ``i`` in it.

    Only the rows of the token table, and of the language-model head's table and bias, are selected: for texts of kept
    tokens all outputs are the same, logits over the vocabulary in the new order. A tied head stays tied. The special
    tokens of the configuration and of ``generation_config`` (padding, begin, end) get their new ids.

    Args:
        model: Any ELM model; it is left as it is.
        kept_ids: Ids of the tokens to keep, each once.

    Raises:
        ValueError: No id, one twice, one outside the vocabulary, or a special token of the configuration is missing.

    Example:
        >>> small = select_tokens(model, [0, 101, 102, 2023])
        >>> small.config.vocab_size
        4
    """
    kept = _checked_ids(kept_ids, model.config.vocab_size)
    new_ids = {old: new for new, old in enumerate(kept)}
    # Found before the copy, so that a mistake costs nothing.
    special = _new_special_tokens("config", model.config, new_ids)
    generation = getattr(model, "generation_config", None)
    special_of_generation = _new_special_tokens("generation_config", generation, new_ids)

    selected = copy.deepcopy(model)
    _select_rows(selected, torch.tensor(kept))
    selected.config.vocab_size = len(kept)
    for name, value in special.items():
        setattr(selected.config, name, value)
    for name, value in special_of_generation.items():
        setattr(selected.generation_config, name, value)
    return selected


def _checked_ids(kept_ids: Iterable[int], vocab_size: int) -> list[int]:
    kept = [operator.index(one) for one in kept_ids]
    if not kept:
        raise ValueError("kept_ids is empty; give at least one token")
    if outside := [one for one in kept if not 0 <= one < vocab_size]:
        raise ValueError(f"kept_ids has {outside[0]}; the vocabulary is 0 to {vocab_size - 1}")
    [(most_frequent, times)] = Counter(kept).most_common(1)
    if times > 1:
        raise ValueError(f"kept_ids has {most_frequent} {times} times; give each token once")
    return kept


def _new_special_tokens(owner: str, settings: Any, new_ids: dict[int, int]) -> dict[str, int | list[int]]:
    found: dict[str, int | list[int]] = {}
    for name in _SPECIAL_TOKENS:
        value = getattr(settings, name, None)
        if value is None:
            continue
        old_ids = value if isinstance(value, list) else [value]
        if missing := [one for one in old_ids if one not in new_ids]:
            raise ValueError(f"kept_ids lacks {missing[0]}, which is {owner}.{name}")
        found[name] = [new_ids[one] for one in old_ids] if isinstance(value, list) else new_ids[value]
    return found


@torch.no_grad()
def _select_rows(model: ElmPreTrainedModel, rows: torch.Tensor) -> None:
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is table.weight
    table.weight = _rows_of(table.weight, rows)
    table.num_embeddings = len(rows)
    if head is not None:
        head.weight = table.weight if tied else _rows_of(head.weight, rows)
        head.bias = _rows_of(head.bias, rows)
        head.out_features = len(rows)


def _rows_of(parameter: nn.Parameter, rows: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(parameter[rows.to(parameter.device)], requires_grad=parameter.requires_grad)


__all__ = ["select_tokens"]
