"""The student's vocabulary: the teacher's tokens that text and tasks use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from elm_nni.data.outputs import TokenizedRows
from elm_nni.data.vocabulary import count_tokens, num_ids, trim_tokenizer

if TYPE_CHECKING:
    from elm_nni.pipeline.context import Context

_ROWS_AT_ONCE = 256


def build_vocabulary(context: Context, folder: Path) -> None:
    """Counts the tokens of the training text and of the tasks' training rows, and keeps those that occur."""
    tokenizer, settings = context.full_teacher.tokenizer, context.config.vocabulary
    counts_V = count_tokens(context.packed(tokenizer)[0], num_ids(tokenizer))
    for rows in context.training_rows(tokenizer):
        counts_V += count_tokens(_ids(rows), len(counts_V))
    trimmed = trim_tokenizer(
        tokenizer, counts_V, min_count=settings.min_count, max_size=settings.max_size, alphabet=settings.alphabet
    )
    trimmed.save(folder)
    context.log("vocabulary", **vocabulary_facts(trimmed))


def vocabulary_facts(trimmed: Any) -> dict[str, Any]:
    """What a run tells of a trimmed vocabulary."""
    return {"tokens": len(trimmed), "of": trimmed.num_original, "coverage": round(trimmed.coverage, 6)}


def _ids(rows: TokenizedRows) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        batch = rows.batch(range(start, min(start + _ROWS_AT_ONCE, len(rows))))
        yield batch["input_ids"][batch["attention_mask"].bool()].numpy()
