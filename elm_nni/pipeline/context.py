"""What every stage of a run shares: configuration, store, log; teacher, text and tasks, loaded when first asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from elm_nni.cost.condition import LatencyCondition
from elm_nni.data.batches import TaskRows
from elm_nni.data.corpora import CorpusSpec, corpus_digest, corpus_texts, load_corpus
from elm_nni.data.packing import PackedCorpus, pack_corpus, pack_source
from elm_nni.data.rows import tokenizer_digest
from elm_nni.data.sources import Rows
from elm_nni.data.tasks import (
    TASKS,
    Kind,
    TaskData,
    TaskSpec,
    find_task,
    limit_rows,
    load_task,
    split_search_validation,
)
from elm_nni.digest import digest, file_digest
from elm_nni.distillation.teacher import Teacher
from elm_nni.errors import UserError
from elm_nni.pipeline.config import Config, TaskConfig
from elm_nni.pipeline.store import StageStore
from elm_nni.search_spaces.architecture import SpaceSettings, preset_settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """A task, tokenised. ``search`` rows are carved from training for the search; test rows are not tokenised here."""

    data: TaskData
    train: TaskRows
    search: TaskRows
    validation: TaskRows

    @property
    def name(self) -> str:
        return self.data.name

    @property
    def kind(self) -> Kind:
        return self.data.kind

    @property
    def num_outputs(self) -> int:
        return self.data.num_labels


@dataclass
class Context:
    """A run's inputs. Everything that is loaded depends on ``config`` alone.

    Args:
        log: called with an event name and plain values.
        observe: called with every :class:`~elm_nni.pipeline.probe.Point` as it is measured.
    """

    config: Config
    store: StageStore
    log: Callable[..., None]
    observe: Callable[[Any], None] = lambda point: None

    @cached_property
    def teacher(self) -> Teacher:
        """The teacher in fp32."""
        return Teacher.load(self.config.teacher.name, device=self.device)

    @cached_property
    def device(self) -> str:
        return "cuda" if torch.cuda.is_available() else "cpu"

    def teacher_in(self, precision: str) -> Teacher:
        """The teacher in ``"fp32"`` or ``"bf16"``."""
        if precision == "fp32":
            return self.teacher
        return Teacher.load(self.config.teacher.name, dtype=torch.bfloat16, device=self.device)

    @cached_property
    def tokenizer(self) -> Any:
        return self.teacher.tokenizer

    @cached_property
    def settings(self) -> SpaceSettings:
        """The search space, with the teacher's vocabulary and at most its longest sequence."""
        given = {
            key: value for key, value in asdict(self.config.space).items() if value is not None and key != "preset"
        }
        try:
            settings = preset_settings(self.config.space.preset, **given)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"space.{error}") from error
        limit = getattr(self.teacher.config, "max_position_embeddings", settings.max_position_embeddings)
        return replace(
            settings,
            vocab_size=self.teacher.vocab_size,
            max_position_embeddings=min(settings.max_position_embeddings, limit),
            pad_token_id=self.tokenizer.pad_token_id or 0,
        )

    @cached_property
    def corpus(self) -> tuple[PackedCorpus, PackedCorpus]:
        """Packed pre-training rows, and held-out rows; of a stream only its beginning, the held-out rows first."""
        data, folder = self.config.data, self.store.root / "corpora"
        if data.streaming:
            # some rows more than are held out: they are timed
            beginning = pack_corpus(
                lambda: corpus_texts(self.stream()), self.tokenizer, folder=folder,
                sequence_length=data.sequence_length,
                corpus_digest=digest([corpus_digest(self.corpus_spec), "stream"]),
                limit_tokens=2 * data.holdout_rows * data.sequence_length,
            )  # fmt: skip
            held_out, rest = beginning.split(len(beginning) - data.holdout_rows)
            return rest, held_out
        packed = pack_source(
            self.corpus_spec, self.tokenizer, sequence_length=data.sequence_length, folder=folder,
            limit_tokens=data.limit_tokens, seed=self.config.seed,
        )  # fmt: skip
        return packed.split(data.holdout_rows)

    def stream(self) -> Rows:
        """The corpus in the order of its source, read as it is needed."""
        return load_corpus(self.corpus_spec, streaming=True, seed=self.config.seed)

    @property
    def corpus_spec(self) -> CorpusSpec:
        """The run's text; text of a task's rows is split by the run's seed."""
        data = self.config.data
        return replace(CorpusSpec.parse(data.corpus), column=data.text_column, split_seed=self.config.seed)

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """Every configured task by name."""
        return {task.name: self._prepare(task) for task in self.config.tasks}

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What names the teacher, its tokenizer and the space in the digest of a stage."""
        return {
            "teacher": {"content": content_of(self.config.teacher.name), "tokenizer": tokenizer_digest(self.tokenizer)},
            "space": asdict(self.settings),
            "seed": self.config.seed,
        }

    def test_rows(self, name: str) -> TaskRows:
        """The tokenised test rows of a task; ``evaluate`` alone asks for them."""
        data = self.tasks[name].data
        return TaskRows(data.test, self.tokenizer, data.max_length)

    def _prepare(self, task: TaskConfig) -> Task:
        data = load_task(task_spec(task), self.config.seed)
        train, search = split_search_validation(data.train, self.config.search.validation_size, self.config.seed)
        if task.limit_rows is not None:
            train = limit_rows(train, task.limit_rows, self.config.seed)
        parts = [TaskRows(rows, self.tokenizer, data.max_length) for rows in (train, search, data.validation)]
        return Task(replace(data, name=task.name, train=train), *parts)


def latency_condition(config: Config) -> LatencyCondition:
    """The condition that the limit and the table hold under."""
    latency = config.latency
    return LatencyCondition(
        runtime=latency.runtime, dtype=latency.dtype, device=latency.device, threads=latency.threads,
        batch_size=latency.batch_size, sequence_length=latency.sequence_length,
    )  # fmt: skip


def content_of(name: str) -> str:
    """Names the content of a local file or folder by its bytes; anything else (a hub name, ``offline``) by its name."""
    path = Path(name).expanduser()
    if path.is_file():
        return file_digest(path)
    if path.is_dir():
        return digest({str(file.relative_to(path)): file_digest(file) for file in path.rglob("*") if file.is_file()})
    return name


def task_spec(task: TaskConfig) -> TaskSpec:
    """The specification that ``elm_nni.data`` loads.

    Raises:
        UserError: unknown name without a source, or a metric that does not fit.
    """
    if task.source is None and task.name in TASKS:
        spec = TASKS[task.name]
        changes: dict[str, Any] = {"max_length": task.max_length} if task.max_length else {}
    else:
        spec = TaskSpec(name=task.name, source=task.source) if task.source else find_task(task.name)
        text = (task.text, task.text_pair) if task.text_pair else (task.text,)
        changes = {"name": task.name, "text": text, "label": task.label, "kind": task.kind}
        changes["metric"] = "accuracy" if task.kind == "classification" else "spearman"
        changes["max_length"] = task.max_length or spec.max_length
    if task.metric:
        changes["metric"] = task.metric
    try:
        return replace(spec, **changes)
    except ValueError as error:
        raise UserError(f"tasks.{task.name}: {error}") from error
