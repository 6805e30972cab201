"""The pipeline's configuration: frozen dataclasses, read from presets, YAML files and dotted overrides."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from elm_nni.errors import UserError
from elm_nni.files import read_settings
from elm_nni.pipeline.conversion import build, plain
from elm_nni.pipeline.validation import validate

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class SpaceConfig:
    """The search space: a preset of ``elm_nni.search_spaces``; a setting that is not None replaces the preset's."""

    preset: str = "elm-small"
    num_layers: int | None = None
    hidden_size: int | None = None
    num_heads: int | None = None
    bottleneck_size: int | None = None
    ffn_start: int | None = None
    ffn_step: int | None = None
    ffn_max: int | None = None
    embedding_size: int | None = None
    is_causal: bool | None = None
    pooling: Literal["cls", "mean", "last"] | None = None
    dropout: float | None = None


@dataclass(frozen=True)
class TeacherConfig:
    """The teacher: ``offline`` for the packaged one, a hub name, or a folder.

    ``head`` says where the teacher's task logits come from: ``linear`` (a linear head on frozen features),
    ``finetune`` (all of its weights), or a folder with a classifier of the user's own (one task only). ``lm_head`` says
    where its logits for language modelling come from: its ``own`` head, or one that ``lm_head_steps`` steps fit on its
    features (``refit``).
    """

    name: str = "bert-base-uncased"
    precision: Precision = "auto"
    head: str = "linear"
    finetune_epochs: int = 2
    finetune_lr: float = 3e-5
    lm_head: Literal["own", "refit"] = "own"
    lm_head_steps: int = 400


@dataclass(frozen=True)
class DataConfig:
    """Pre-training text: offline corpora, hub data sets or local files. Lengths in tokens, sizes in rows.

    Several sources are mixed in proportion to their size; where they are streamed they take turns, text by text.
    ``seed`` orders the texts and so chooses the held-out rows; None takes that of the run.
    ``streaming`` packs rows as they are needed, in the order of the source, for text that does not fit the disk. The
    held-out rows are then the first ones, left out of the first pass.
    """

    corpus: tuple[str, ...] = ("offline:demo",)
    text_column: str = "text"
    sequence_length: int = 128
    limit_tokens: int | None = None
    holdout_rows: int = 64
    streaming: bool = False
    seed: int | None = None


@dataclass(frozen=True)
class VocabularyConfig:
    """The student's vocabulary: the teacher's, or those of its tokens that text and tasks use (``trim``).

    Kept are tokens that occur ``min_count`` times, the most frequent ``max_size`` in all, and single characters:
    ``used`` ones, or ``all`` that the teacher knows.
    """

    trim: bool = False
    min_count: int = 1
    max_size: int | None = None
    alphabet: Literal["used", "all"] = "used"


@dataclass(frozen=True)
class TaskConfig:
    """A downstream task: a known name, or a local file / hub data set with named columns.

    A hub data set may have a ``config`` and splits; without a ``test_split`` a part of train is tested on, of questions
    the split ``validation``. ``label_names`` are the classes, labels or tags in order of their ids. The task ``text``
    is language modelling of ``data.corpus``: next tokens in a causal space, else hidden ones. Of other tasks
    ``limit_rows`` training rows are used; rows of search, validation and test are not limited. Questions (kind
    ``question_answering``) may have a file of their own to test on, ``test_source``.
    """

    name: str = "polarity"
    source: str | None = None
    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    kind: Literal[
        "classification", "regression", "multi_label", "token_classification", "question_answering",
        "sentence_embedding",
    ] = "classification"  # fmt: skip
    metric: str | None = None
    max_length: int | None = None
    limit_rows: int | None = None
    test_source: str | None = None
    config: str | None = None
    train_split: str | None = None
    test_split: str | None = None
    label_names: tuple[str, ...] | None = None

    @classmethod
    def from_text(cls, text: str) -> TaskConfig:
        """A known task by its name."""
        return cls(name=text)


@dataclass(frozen=True)
class LimitsConfig:
    """Hard limits of the search. Parameters count the embeddings, not the head; milliseconds hold under ``latency``."""

    max_params: float | None = None
    max_params_outside_embeddings: float | None = None
    max_latency_ms: float | None = None


@dataclass(frozen=True)
class LatencyConfig:
    """The condition a latency holds under, and where its table comes from (``table``: a file; None: measured here)."""

    table: str | None = None
    runtime: Literal["eager", "compile", "onnx", "onnx-int8"] = "eager"
    dtype: Literal["fp32", "bf16"] = "fp32"
    device: str = "cpu"
    threads: int = 1
    batch_size: int = 1
    sequence_length: int = 128
    repeats: int = 30


@dataclass(frozen=True)
class TrainingConfig:
    """One training run. ``steps`` counts optimizer steps; the learning rate warms up, then falls linearly to zero."""

    steps: int = 1000
    batch_size: int = 32
    lr: float = 1e-4
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip: float = 1.0
    checkpoint_every: int = 200


@dataclass(frozen=True)
class GrowthConfig:
    """PCA growth: after every epoch of ``epoch_steps`` supernet steps the ``top_k`` best cells grow, under ``budget``.

    ``budget`` bounds the mean parameter count of a uniformly sampled architecture, embeddings counted. ``threshold``
    and ``mode`` are for the PCA scores.
    """

    enabled: bool = True
    top_k: int = 21
    budget: float = 15.7e6
    epoch_steps: int = 200
    threshold: float = 0.99
    mode: Literal["step", "epoch"] = "step"
    score: Literal[
        "pca", "pca_normalized", "activation_norm", "gradient_saliency", "learnable_gate", "random"
    ] = "pca"  # fmt: skip
    every: int = 1


@dataclass(frozen=True)
class DistillationConfig:
    """Losses: ``relational`` or ``mse`` on features, ``relational`` or ``kl`` on logits, and their weights.

    ``objective`` is that of training on text: the teacher's features, the likelihood of masked (``mlm``) or next
    (``clm``) tokens, or both.
    """

    objective: Literal["distill", "mlm", "clm", "distill+mlm", "distill+clm"] = "distill"
    features: Literal["relational", "mse"] = "relational"
    logits: Literal["relational", "kl"] = "relational"
    beta: float = 1.0
    gamma: float = 1.0
    tau: float = 1.0
    lambda_feature: float = 1.0
    lambda_logit: float = 1.0
    lambda_label: float = 1.0
    token_table: Literal["random", "svd"] = "random"


@dataclass(frozen=True)
class SearchConfig:
    """``evolution``, or ``optuna:NAME``, a sampler of Optuna with its ``sampler_args``.

    ``tasks`` (default: all) give the fitness, on ``validation_size`` rows carved from training. A sampler may have
    several ``objectives``: ``metric``, ``params``, ``latency_ms``. It evaluates ``evaluations`` architectures, None: as
    many as the evolution's generations hold.
    """

    strategy: str = "evolution"
    objectives: tuple[str, ...] = ("metric",)
    evaluations: int | None = None
    sampler_args: dict[str, Any] = field(default_factory=dict)
    population: int = 50
    generations: int = 40
    mutations: int = 25
    crossovers: int = 25
    mutation_prob: float = 0.1
    keep: int = 50
    validation_size: int = 512
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True)
class PruneConfig:
    """The CKA head step: heads more alike than ``eta`` are removed, or fused into fewer and wider ones."""

    eta: float = 0.9
    mode: Literal["remove", "fuse", "off"] = "remove"
    min_heads: int = 2
    samples: Literal["tokens", "sequences"] = "tokens"
    sequences: int = 512


@dataclass(frozen=True)
class RetrainConfig:
    """Training of the winner: from ``scratch``, or from slices of the supernet's weights (``inherit``)."""

    init: Literal["scratch", "inherit"] = "scratch"
    pretrain: TrainingConfig = field(default_factory=TrainingConfig)
    finetune: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass(frozen=True)
class BaselinesConfig:
    """Rows trained beside ours for the results table."""

    uniform: bool = True
    half_teacher: bool = True
    tfidf: bool = True


@dataclass(frozen=True)
class ExportConfig:
    """What ``export`` writes beside the Hugging Face folder."""

    onnx: bool = False
    int8: bool = False


@dataclass(frozen=True)
class SupernetConfig:
    """The two supernet phases: distillation on text, then one random path a step on the tasks.

    ``probe_rows`` training and validation rows a task measure its progress after every epoch; 0 leaves that out.
    """

    pretrain: TrainingConfig = field(default_factory=TrainingConfig)
    tasks: TrainingConfig = field(default_factory=lambda: TrainingConfig(lr=4e-4))
    probe_rows: int = 512


@dataclass(frozen=True)
class Config:
    """Everything a run depends on. See ``docs/configuration.md`` for each key."""

    seed: int = 0
    precision: Precision = "auto"
    space: SpaceConfig = field(default_factory=SpaceConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    data: DataConfig = field(default_factory=DataConfig)
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    tasks: tuple[TaskConfig, ...] = (TaskConfig(),)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    latency: LatencyConfig = field(default_factory=LatencyConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    growth: GrowthConfig = field(default_factory=GrowthConfig)
    supernet: SupernetConfig = field(default_factory=SupernetConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    retrain: RetrainConfig = field(default_factory=RetrainConfig)
    baselines: BaselinesConfig = field(default_factory=BaselinesConfig)
    export: ExportConfig = field(default_factory=ExportConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries and lists."""
        return plain(asdict(self))


def preset_names() -> list[str]:
    """The names ``elm-nni run`` knows."""
    folder = resources.files("elm_nni.pipeline") / "presets"
    return sorted(Path(str(entry)).stem for entry in folder.iterdir() if str(entry).endswith(".yaml"))


def load_config(source: str, overrides: Mapping[str, Any] | None = None) -> Config:
    """Reads a preset or YAML file and applies dotted overrides such as ``{"growth.top_k": 8}``.

    A YAML file may start from a preset: its top-level key ``preset`` names it.

    Raises:
        UserError: unknown preset or key (the nearest known one is named), wrong type, value out of range.
    """
    values = _read(source)
    for key, value in (overrides or {}).items():
        _set(values, key, value)
    config = build(Config, values)
    validate(config)
    return config


def parse_assignment(text: str) -> tuple[str, Any]:
    """Splits ``key=value``; the value is read as YAML, and ``15.7M`` or ``30k`` as a number.

    Raises:
        UserError: no ``=``.
    """
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise UserError(f"--set {text!r}: expected key=value, for example growth.top_k=8")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {text!r}: the value is not YAML: {' '.join(str(error).split())}") from error


def _read(source: str) -> dict[str, Any]:
    names = preset_names()
    if source in names:
        text = (resources.files("elm_nni.pipeline") / "presets" / f"{source}.yaml").read_text(encoding="utf-8")
        return yaml.safe_load(text)
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        nearest = difflib.get_close_matches(source, names, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else "."
        raise UserError(f"unknown preset {source!r}{hint} Known: {', '.join(names)}, or a .yaml file")
    values = read_settings(path)
    base = values.pop("preset", None)
    return _merge(_read(str(base)), values) if base else values


def _merge(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value
    return base


def _set(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    target = values
    for name in parents:
        target = target.setdefault(name, {})
        if not isinstance(target, dict):
            raise UserError(f"{dotted}: {name} has no keys of its own")
    target[last] = value
