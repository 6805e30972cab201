"""Pairs of texts that belong together, a query and a document: what a model of sentence embeddings is tested on."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from elm_nni.data import offline
from elm_nni.data.sources import is_local, load_file, load_hub, require_columns
from elm_nni.data.splits import Table, split_search_validation, split_table
from elm_nni.data.task_rows import TaskRows
from elm_nni.errors import UserError
from elm_nni.files import local_path

logger = logging.getLogger(__name__)

# Shape suffixes: P pairs, N texts, E embedding.

HEADLINES = "headlines"
_LEAST_PAIRS = 20

Pair = tuple[str, str]


@dataclass(frozen=True)
class PairTask:
    """What a task of sentence embeddings says of itself, as ``TaskData`` does of others.

    Attributes:
        num_labels: width of the embeddings, the teacher's.
    """

    name: str
    train: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    test: tuple[Pair, ...]
    num_labels: int
    max_length: int = 128
    kind: Literal["sentence_embedding"] = "sentence_embedding"
    metric: str = "mrr"
    metrics: tuple[str, ...] = ("mrr", "recall_at_1", "recall_at_10")
    label_names: tuple[str, ...] = ()
    is_pair: bool = False


class PairRows:
    """Queries and then documents, each a row of its own; itself a tokenised split.

    Row p is the query and row ``num_pairs + p`` the document of pair p. Labels are 0: the pairs themselves say what is
    right, and training compares embeddings with the teacher's.

    Example:
        >>> PairRows([("a headline", "its article")], tokenizer, 64).num_pairs  # doctest: +SKIP
        1
    """

    def __init__(self, pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.num_pairs = len(pairs)
        texts = [query for query, _ in pairs] + [document for _, document in pairs]
        rows = datasets.Dataset.from_dict({"text": texts, "label": [0] * len(texts)})
        self._rows = TaskRows(rows, tokenizer, max_length)
        self.lengths, self.labels = self._rows.lengths, self._rows.labels

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """The padded batch of some texts."""
        return self._rows.batch(indices)


def load_pairs(
    source: str,
    seed: int = 0,
    *,
    text: str = "text",
    text_pair: str = "text_pair",
    config: str | None = None,
    train_split: str = "train",
    test_split: str | None = None,
) -> tuple[tuple[Pair, ...], tuple[Pair, ...], tuple[Pair, ...]]:
    """Train, validation and test pairs, cut by (the pairs, ``seed``) alone.

    One source without a test is cut 80/10/10. A hub split of its own stays the test, and a tenth of train (at most
    2,000 pairs) becomes validation. A text that occurs twice on its side would have two right answers: only its first
    pair stays, that of the test before those of train.

    Args:
        source: ``headlines``, the packaged news articles with their first line as the query; a local file, or a hub
            data set.
        seed: fixes the splits.
        text: column of the queries.
        text_pair: column of the documents.
        config: configuration of a hub data set.
        train_split: hub split to train on.
        test_split: hub split to test on; None cuts the test from train. Files have no splits.

    Raises:
        UserError: a missing package, file or column, hub out of reach, a test without pairs, or fewer than twenty pairs
            to train on.

    Example:
        >>> len(load_pairs("headlines")[2])
        206
    """
    columns = (text, text_pair)
    tests: list[Pair] = []
    if test_split is not None and source != HEADLINES and not is_local(source):
        tests = _distinct(_read(source, columns, config, test_split))
        if not tests:
            raise UserError(f"{source} has no pairs in its split '{test_split}'")
    found = _headlines() if source == HEADLINES else _read(source, columns, config, train_split)
    pairs = _distinct([*tests, *found])[len(tests) :]
    why = "a text that occurs again on its side would have two right answers"
    if len(pairs) < _LEAST_PAIRS:
        raise UserError(
            f"{source} has {len(pairs)} different pairs of {len(found)}; give at least {_LEAST_PAIRS} ({why})"
        )
    if len(pairs) < len(found):
        logger.warning("%s: %d of %d pairs are left out; %s", source, len(found) - len(pairs), len(found), why)
    parts = split_table(_table(pairs), [_table(tests)] if tests else (), seed)
    train, validation, test = (tuple((query, document) for query, document in part.texts) for part in parts)
    return train, validation, test


def split_search_pairs(train: Sequence[Pair], size: int, seed: int) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """The rest of train and the part on which a search compares candidates, as ``split_search_validation`` cuts."""
    rows = datasets.Dataset.from_dict({"text": [one for one, _ in train], "text_pair": [one for _, one in train]})
    rest, search = (tuple(zip(part["text"], part["text_pair"])) for part in split_search_validation(rows, size, seed))
    return rest, search


def retrieval_scores(queries_PE: NDArray, documents_PE: NDArray) -> dict[str, float]:
    """How high the document of each query stands among all, by cosine; of equal ones it stands last.

    Returns:
        ``mrr``, the mean of 1 / rank; ``recall_at_1`` and ``recall_at_10``, shares of queries.

    Raises:
        ValueError: other shapes than one (P, E), or no pairs.

    Example:
        >>> retrieval_scores(np.eye(2), np.array([[1.0, 0.0], [1.0, 0.1]]))["recall_at_1"]
        0.5
    """
    if queries_PE.shape != documents_PE.shape or queries_PE.ndim != 2 or len(queries_PE) == 0:
        raise ValueError(f"embeddings must have one shape (P, E), got {queries_PE.shape} and {documents_PE.shape}")
    similarities_PP = _unit(queries_PE) @ _unit(documents_PE).T
    own_P1 = np.diagonal(similarities_PP)[:, None]
    ranks_P = (similarities_PP >= own_P1).sum(1)
    return {
        "mrr": float((1 / ranks_P).mean()), "recall_at_1": float((ranks_P == 1).mean()),
        "recall_at_10": float((ranks_P <= 10).mean()),
    }  # fmt: skip


def _unit(values_PE: NDArray) -> NDArray:
    values_PE = values_PE.astype(np.float64)
    return values_PE / np.maximum(np.linalg.norm(values_PE, axis=1, keepdims=True), 1e-12)


def _headlines() -> list[Pair]:
    articles = (text.partition("\n") for text in offline.read_topics()[0])
    return [(headline.strip(), body.strip()) for headline, _, body in articles]


def _read(source: str, columns: tuple[str, str], config: str | None, split: str) -> list[Pair]:
    rows = load_file(local_path(source)) if is_local(source) else load_hub(source, config=config, split=split)
    require_columns(rows, columns, source)
    texts = (rows[column][:] for column in columns)
    return [(str(query or "").strip(), str(document or "").strip()) for query, document in zip(*texts)]


def _table(pairs: Sequence[Pair]) -> Table:
    return Table(list(pairs), [0] * len(pairs))


def _distinct(pairs: Sequence[Pair]) -> list[Pair]:
    seen: tuple[set[str], set[str]] = (set(), set())
    kept = []
    for pair in pairs:
        keys = [" ".join(text.split()).casefold() for text in pair]
        if all(keys) and not any(key in known for key, known in zip(keys, seen)):
            kept.append(pair)
            for key, known in zip(keys, seen):
                known.add(key)
    return kept
