"""What a task is: where its rows are, which columns count and how it is scored."""

from dataclasses import dataclass, replace
from pathlib import Path

from elm_nni.data.metrics import FURTHER_METRICS, MAIN_METRICS, METRICS, Kind, metrics_of
from elm_nni.errors import UserError

# In a column of texts that holds several labels a row.
LABEL_SEPARATOR = "|"


@dataclass(frozen=True)
class TaskSpec:
    """What a task is: where its rows are, which columns count and how it is scored.

    Attributes:
        name: name in tables and file names.
        source: "offline:polarity|imdb|tweets|topic", a local .csv, .jsonl, .json, .parquet or .conll file, or a hub
            data set.
        text: one text column, or two for pairs; for token classification one column of lists of words.
        label: column of the label. Several labels a row (multi_label) are a list, which may be empty, or a text such
            as "sport|politics", empty for none; tags (token_classification) are a list as long as that of the words.
        metric: the main metric, which a search maximises: a name of ``elm_nni.data.metrics.METRICS``.
        kind: "classification", "regression", "multi_label" or "token_classification".
        label_names: names of the classes, labels or tags in order of their ids. Whole numbers in the column are ids of
            these names, unless some name is a number itself. None takes the names of the column's features, else what
            occurs in the data (sorted).
        max_length: tokens a row is cut to, special tokens counted.
        config: configuration of a hub data set.
        train_split: hub split to train on.
        test_split: hub split to test on; None cuts validation and test from the train split, as for local files.
        extra_tests: name and hub split of further test rows, such as the mismatched ones of MNLI.
        metrics: what is reported beside the main metric; empty means nothing for classes and values, and the other
            metrics of the kind for several labels and tags.

    Raises:
        ValueError: an unknown kind, a metric that is unknown or of another kind, other than one or two text columns
            (one for tags), no or repeated ``label_names``, further tests without a test, or ``max_length`` below 8.

    Example:
        >>> TaskSpec(name="mine", source="reviews.csv", text=("review",), label="stars").metric
        'accuracy'
    """

    name: str
    source: str
    text: tuple[str, ...] = ("text",)
    label: str = "label"
    metric: str = "accuracy"
    kind: Kind = "classification"
    label_names: tuple[str, ...] | None = None
    max_length: int = 128
    config: str | None = None
    train_split: str = "train"
    test_split: str | None = None
    extra_tests: tuple[tuple[str, str], ...] = ()
    metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in MAIN_METRICS:
            raise ValueError(f"kind must be one of {', '.join(MAIN_METRICS)}, got {self.kind!r}")
        for metric in (self.metric, *self.metrics):
            self._check_metric(metric)
        most = 1 if self.kind == "token_classification" else 2
        if not 1 <= len(self.text) <= most:
            raise ValueError(
                f"text must name {'one column' if most == 1 else 'one or two columns'}, got {len(self.text)}"
            )
        if self.label_names is not None and len(set(self.label_names)) != max(1, len(self.label_names)):
            raise ValueError(f"label_names must be different names, got {', '.join(self.label_names) or 'none'}")
        if self.extra_tests and self.test_split is None:
            raise ValueError("extra_tests need a test_split")
        if self.max_length < 8:
            raise ValueError(f"max_length must be at least 8 tokens, got {self.max_length}")

    def _check_metric(self, metric: str) -> None:
        if metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
        if METRICS[metric].kind != self.kind:
            fitting = ", ".join(metrics_of(self.kind))
            raise ValueError(f"metric {metric!r} does not fit kind {self.kind!r}; those that do: {fitting}")

    @property
    def reported(self) -> tuple[str, ...]:
        """Every metric to report, the main one first.

        Example:
            >>> TaskSpec(name="a", source="a.jsonl", kind="multi_label", metric="f1_macro").reported
            ('f1_macro', 'f1_micro', 'subset_accuracy')
        """
        further = self.metrics or FURTHER_METRICS.get(self.kind, ())
        return (self.metric, *(name for name in further if name != self.metric))


def parse_columns(columns: str) -> dict[str, str]:
    """Columns of a line such as "text=review,label=stars", by the keys ``text``, ``text_pair`` and ``label``.

    Raises:
        UserError: another key, a key given twice, or no text.

    Example:
        >>> parse_columns("text=premise,text_pair=hypothesis,label=gold")
        {'text': 'premise', 'text_pair': 'hypothesis', 'label': 'gold'}
    """
    found: dict[str, str] = {}
    for part in columns.split(","):
        key, equals, column = (piece.strip() for piece in part.partition("="))
        if key not in ("text", "text_pair", "label") or not equals or not column or key in found:
            raise UserError(
                f"columns '{columns}': '{part}' is not understood; write text=NAME[,text_pair=NAME],label=NAME"
            )
        found[key] = column
    if "text" not in found:
        raise UserError(f"columns '{columns}' must name the text: write text=NAME[,text_pair=NAME],label=NAME")
    return found


def task_from_file(
    path: str,
    columns: str,
    *,
    metric: str | None = None,
    kind: Kind = "classification",
    max_length: int = 128,
) -> TaskSpec:
    """Specification of a local file, from a line such as "text=review,label=stars".

    Raises:
        UserError: the line is not understood or names no label, or metric, kind or length are not allowed.

    Example:
        >>> task_from_file("reviews.csv", "text=review,label=stars", metric="f1").text
        ('review',)
    """
    named = parse_columns(columns)
    if "label" not in named:
        raise UserError(f"columns '{columns}' must name a label: write text=NAME[,text_pair=NAME],label=NAME")
    text = tuple(named[key] for key in ("text", "text_pair") if key in named)
    spec = TaskSpec(name=Path(path).stem, source=path, label=named["label"])
    chosen = metric or MAIN_METRICS.get(kind, spec.metric)
    try:
        return replace(spec, text=text, metric=chosen, kind=kind, max_length=max_length)
    except ValueError as error:
        raise UserError(f"task '{path}': {error}") from error
