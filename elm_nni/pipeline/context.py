"""What every stage of a run shares: configuration, store, log; teacher, text and tasks, loaded when first asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from elm_nni.cost.condition import LatencyCondition
from elm_nni.data.batches import TaskRows
from elm_nni.data.conll import is_conll
from elm_nni.data.corpora import CorpusSpec, as_specs, corpus_digest, corpus_texts, load_corpus
from elm_nni.data.language import LanguageData, LanguageRows, Masking
from elm_nni.data.metrics import MAIN_METRICS
from elm_nni.data.outputs import RowBatches, TokenizedRows
from elm_nni.data.packing import PackedCorpus, pack_corpus, pack_source
from elm_nni.data.pairs import HEADLINES, PairRows, PairTask, load_pairs, split_search_pairs
from elm_nni.data.question_task import QuestionTask
from elm_nni.data.rows import tokenizer_digest
from elm_nni.data.sources import Rows
from elm_nni.data.splits import drawn_rows
from elm_nni.data.squad import SQUAD, limit_questions, load_questions, split_search_questions
from elm_nni.data.tasks import (
    TASKS,
    TaskData,
    TaskSpec,
    find_task,
    limit_rows,
    load_task,
    split_search_validation,
)
from elm_nni.data.vocabulary import TrimmedVocabulary
from elm_nni.digest import digest, file_digest
from elm_nni.distillation.teacher import Teacher
from elm_nni.errors import UserError
from elm_nni.kinds import (
    KINDS,
    CausalLM,
    MaskedLM,
    QuestionAnswering,
    SentenceEmbedding,
    TaskKind,
    TokenClassification,
    language_kind,
)
from elm_nni.pipeline.config import Config, TaskConfig
from elm_nni.pipeline.store import StageStore
from elm_nni.pipeline.vocabulary_stage import build_vocabulary
from elm_nni.search_spaces.architecture import SpaceSettings, preset_settings

logger = logging.getLogger(__name__)

# the task that is language modelling of the corpus
TEXT = "text"
# keys of a task that name a part of a hub data set, and those that a digest names only where they are given
_HUB_KEYS = ("config", "train_split", "test_split")
_NAMED_IF_GIVEN = (*_HUB_KEYS, "label_names")
# known by name, but not of rows with labels
OTHER_TASKS = (*SQUAD, HEADLINES, TEXT)


@dataclass(frozen=True)
class Task:
    """A task, tokenised. ``search`` rows are carved from training for the search; ``make_test`` tokenises test rows."""

    data: TaskData | QuestionTask | PairTask | LanguageData
    train: TokenizedRows
    search: TokenizedRows
    validation: TokenizedRows
    make_test: Callable[[], TokenizedRows]

    @property
    def name(self) -> str:
        return self.data.name

    @property
    def kind(self) -> TaskKind:
        return KINDS[self.data.kind]

    @property
    def num_outputs(self) -> int:
        return self.data.num_labels

    def outputs(self, logits_of: Callable[[dict[str, Any]], Tensor], rows: TokenizedRows) -> Tensor:
        """What the task's kind keeps of the logits of each batch, for all rows in their order."""
        return RowBatches(rows, self.name).outputs(lambda batch: self.kind.kept(logits_of(batch), batch))

    def score(self, outputs: Tensor, rows: TokenizedRows) -> float:
        """The main metric of the outputs of all rows."""
        return self.scores(outputs, rows, (self.data.metric,))[self.data.metric]

    def scores(
        self, outputs: Tensor, rows: TokenizedRows, metrics: Sequence[str] | None = None,
        threshold: float | None = None,
    ) -> dict[str, float]:  # fmt: skip
        """Metric to score of the outputs of all rows, of every metric that the task reports unless some are named."""
        return self.kind.scores(metrics or self.data.metrics, outputs, rows, self.data.label_names, threshold)

    def threshold(self, logits_of: Callable[[dict[str, Any]], Tensor]) -> float | None:
        """What the kind chooses for a model on validation rows; None, without a forward, where it chooses nothing."""
        return self.kind.threshold(lambda: self.outputs(logits_of, self.validation), self.validation)


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
    def full_teacher(self) -> Teacher:
        """The teacher in fp32, as it was saved."""
        return Teacher.load(self.config.teacher.name, device=self.device)

    @cached_property
    def teacher(self) -> Teacher:
        """The teacher in fp32, for ids of the student's vocabulary."""
        return self._mapped(self.full_teacher)

    @cached_property
    def device(self) -> str:
        return "cuda" if torch.cuda.is_available() else "cpu"

    def teacher_in(self, precision: str) -> Teacher:
        """The teacher in ``"fp32"`` or ``"bf16"``."""
        if precision == "fp32":
            return self.teacher
        return self._mapped(Teacher.load(self.config.teacher.name, dtype=torch.bfloat16, device=self.device))

    @cached_property
    def tokenizer(self) -> Any:
        """The student's tokenizer: the teacher's, or one with a part of its tokens."""
        return self.full_teacher.tokenizer if self.vocabulary is None else self.vocabulary.tokenizer

    @cached_property
    def vocabulary(self) -> TrimmedVocabulary | None:
        """The tokens that the student keeps; None where it keeps all."""
        settings = self.config.vocabulary
        if not settings.trim:
            return None
        inputs = {
            **asdict(settings), "data": self.packed(self.full_teacher.tokenizer)[0].manifest["digest"],
            "holdout_rows": self.config.data.holdout_rows, "seed": self.config.seed,
            "tasks": [task_identity(task) for task in self.config.tasks],
            "validation_size": self.config.search.validation_size,
        }  # fmt: skip
        built = self.store.build("vocabulary", inputs, lambda folder: build_vocabulary(self, folder))
        return TrimmedVocabulary.load(built.folder)

    def _mapped(self, teacher: Teacher) -> Teacher:
        return teacher if self.vocabulary is None else teacher.with_token_map(self.vocabulary.kept_ids_V)

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
        return self.packed(self.tokenizer)

    def packed(self, tokenizer: Any) -> tuple[PackedCorpus, PackedCorpus]:
        """The same, split by any tokenizer."""
        data, folder = self.config.data, self.store.root / "corpora"
        if data.streaming:
            # some rows more than are held out: they are timed
            beginning = pack_corpus(
                lambda: corpus_texts(self.stream()), tokenizer, folder=folder,
                sequence_length=data.sequence_length,
                corpus_digest=digest([corpus_digest(self.corpus_spec), "stream"]),
                limit_tokens=2 * data.holdout_rows * data.sequence_length,
            )  # fmt: skip
            held_out, rest = beginning.split(len(beginning) - data.holdout_rows)
            return rest, held_out
        packed = pack_source(
            self.corpus_spec, tokenizer, sequence_length=data.sequence_length, folder=folder,
            limit_tokens=data.limit_tokens, seed=self.text_seed,
        )  # fmt: skip
        return packed.split(data.holdout_rows)

    def stream(self) -> Rows:
        """The corpus in the order of its source, read as it is needed."""
        return load_corpus(self.corpus_spec, streaming=True, seed=self.text_seed)

    @property
    def text_seed(self) -> int:
        """What orders the text and splits the task whose training texts belong to it."""
        return self.config.seed if self.config.data.seed is None else self.config.data.seed

    @property
    def corpus_spec(self) -> list[CorpusSpec]:
        """The run's text."""
        data = self.config.data
        return [
            replace(spec, column=data.text_column, split_seed=self.text_seed) for spec in as_specs(data.corpus)
        ]

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """Every configured task by name; the one that packs the corpus is made last."""
        names = [task.name for task in self.config.tasks]
        last = sorted(self.config.tasks, key=lambda task: task.name == TEXT)
        prepared = {task.name: self._prepare(task, self.tokenizer) for task in last}
        return {name: prepared[name] for name in names}

    def training_rows(self, tokenizer: Any) -> list[TokenizedRows]:
        """The training rows of every task that brings rows of its own, split by any tokenizer."""
        return [self._prepare(task, tokenizer).train for task in self.config.tasks if task.name != TEXT]

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What names the teacher, its tokenizer and the space in the digest of a stage."""
        return {
            "teacher": {"content": content_of(self.config.teacher.name), "tokenizer": tokenizer_digest(self.tokenizer)},
            "space": asdict(self.settings),
            "seed": self.config.seed,
        }

    def test_rows(self, name: str) -> TokenizedRows:
        """The tokenised test rows of a task; ``evaluate`` alone asks for them."""
        return self.tasks[name].make_test()

    def further_test_rows(self, name: str) -> dict[str, TokenizedRows]:
        """Test rows of a task beside the main ones, by name; ``evaluate`` alone asks for them."""
        data = self.tasks[name].data
        if not isinstance(data, TaskData):
            return {}
        return {test: TaskRows(rows, self.tokenizer, data.max_length) for test, rows in data.extra_tests.items()}

    @property
    def held_out_text(self) -> LanguageRows:
        """The held-out rows of the corpus, without those that a text task is tested on."""
        rows, kind = self.corpus[1], language_kind(self.config.distillation.objective)
        if any(task.name == TEXT for task in self.config.tasks):
            rows = rows.split(self.config.data.holdout_rows // 3)[0]
        return self._language_rows(rows, kind.name if kind is not None else CausalLM.name)

    def masking(self, kind: str) -> Masking | None:
        """How the tokens to be predicted are hidden: not at all for a causal model."""
        return Masking.of(self.tokenizer) if kind == MaskedLM.name else None

    def _held_out_text(self, kind: str) -> list[LanguageRows]:
        """The held-out rows of the corpus in three parts: for the search, for validation, for the test."""
        rows, third = self.corpus[1], self.config.data.holdout_rows // 3
        search, rest = rows.split(len(rows) - third)
        parts = [search, *rest.split(third)]
        return [self._language_rows(part, kind) for part in parts]

    def _language_rows(self, packed: PackedCorpus, kind: str) -> LanguageRows:
        return LanguageRows(packed, self.tokenizer, self.masking(kind), seed=self.config.seed)

    def _prepare(self, task: TaskConfig, tokenizer: Any) -> Task:
        prepare = self._prepare_rows
        if task.name == TEXT:
            prepare = self._prepare_text
        elif task.kind == QuestionAnswering.name or (task.name in SQUAD and task.source is None):
            prepare = self._prepare_questions
        elif task.kind == SentenceEmbedding.name or (task.name == HEADLINES and task.source is None):
            prepare = self._prepare_pairs
        prepared = prepare(task, tokenizer)
        if task.metric is not None and prepare != self._prepare_rows:
            raise UserError(
                f"tasks.{task.name}.metric: {task.metric!r} is not allowed; it must be null, since the metrics of "
                f"{prepared.kind.name} are fixed"
            )
        return prepared

    def _prepare_rows(self, task: TaskConfig, tokenizer: Any) -> Task:
        data = load_task(task_spec(task), self.config.seed)
        train, search = split_search_validation(data.train, self.config.search.validation_size, self.config.seed)
        if task.limit_rows is not None:
            train = limit_rows(train, task.limit_rows, self.config.seed)
        rows_of = partial(TaskRows, tokenizer=tokenizer, max_length=data.max_length)
        return Task(
            replace(data, name=task.name, train=train),
            rows_of(train), rows_of(search), rows_of(data.validation), partial(rows_of, data.test),
        )  # fmt: skip

    def _prepare_questions(self, task: TaskConfig, tokenizer: Any) -> Task:
        seed = self.config.seed
        source, parts = task.source or task.name, _parts_of_hub(task)
        questions = load_questions(source, seed, test_source=task.test_source, **parts)
        data = QuestionTask(task.name, questions, task.max_length or QuestionTask.max_length)
        train, search = split_search_questions(questions.train, self.config.search.validation_size, seed)
        if task.limit_rows is not None:
            train = limit_questions(train, task.limit_rows, seed)
        windows_of = partial(data.windows, tokenizer=tokenizer)
        return Task(
            data, windows_of(train), windows_of(search), windows_of(questions.validation),
            partial(windows_of, questions.test),
        )  # fmt: skip

    def _prepare_pairs(self, task: TaskConfig, tokenizer: Any) -> Task:
        seed, length = self.config.seed, task.max_length or PairTask.max_length
        second, parts = task.text_pair or "text_pair", _parts_of_hub(task)
        train, validation, test = load_pairs(task.source or task.name, seed, text=task.text, text_pair=second, **parts)
        rest, search = split_search_pairs(train, self.config.search.validation_size, seed)
        if task.limit_rows is not None:
            rest = tuple(rest[row] for row in drawn_rows(len(rest), task.limit_rows, seed))
        data = PairTask(task.name, rest, validation, test, self.full_teacher.width, length)
        rows_of = partial(PairRows, tokenizer=tokenizer, max_length=length)
        return Task(data, rows_of(rest), rows_of(search), rows_of(validation), partial(rows_of, test))

    def _prepare_text(self, task: TaskConfig, tokenizer: Any) -> Task:
        if self.config.data.holdout_rows < 3:
            raise UserError(
                f"data.holdout_rows: {self.config.data.holdout_rows} is not allowed with task {TEXT}; it must be >= 3: "
                "rows for search, validation and test"
            )
        kind: Literal["causal_lm", "masked_lm"] = "causal_lm" if self.settings.is_causal else "masked_lm"
        data = LanguageData(TEXT, kind, self.config.data.sequence_length)
        search, validation, test = self._held_out_text(kind)
        return Task(data, self._language_rows(self.corpus[0], kind), search, validation, lambda: test)


def latency_condition(config: Config) -> LatencyCondition:
    """The condition that the limit and the table hold under."""
    latency = config.latency
    return LatencyCondition(
        runtime=latency.runtime, dtype=latency.dtype, device=latency.device, threads=latency.threads,
        batch_size=latency.batch_size, sequence_length=latency.sequence_length,
    )  # fmt: skip


def task_identity(task: TaskConfig) -> dict[str, Any]:
    """What names a task's rows in the digest of a stage: files by their content."""
    named = {key: value for key, value in asdict(task).items() if value is not None or key not in _NAMED_IF_GIVEN}
    known = {**named, "source": task.source and content_of(task.source)}
    test_source = known.pop("test_source")
    return {**known, "test_source": content_of(test_source)} if test_source else known


def content_of(name: str) -> str:
    """Names the content of a local file or folder by its bytes; anything else (a hub name, ``offline``) by its name."""
    path = Path(name).expanduser()
    if path.is_file():
        return file_digest(path)
    if path.is_dir():
        return digest({str(file.relative_to(path)): file_digest(file) for file in path.rglob("*") if file.is_file()})
    return name


def _parts_of_hub(task: TaskConfig) -> dict[str, Any]:
    # what is not given is left to the loader
    return {key: value for key in _HUB_KEYS if (value := getattr(task, key)) is not None}


def task_spec(task: TaskConfig) -> TaskSpec:
    """The specification that ``elm_nni.data`` loads.

    Raises:
        UserError: unknown name without a source, a metric that does not fit, or names of labels that are not unique.
    """
    if task.source is None and task.name in TASKS:
        spec = TASKS[task.name]
        changes: dict[str, Any] = {"max_length": task.max_length} if task.max_length else {}
    else:
        spec = TaskSpec(name=task.name, source=task.source) if task.source else find_task(task.name, others=OTHER_TASKS)
        text = (task.text, task.text_pair) if task.text_pair else (task.text,)
        # columns of words and tags are nothing else
        kind = TokenClassification.name if is_conll(task.source or "") else task.kind
        changes = {"name": task.name, "text": text, "label": task.label, "kind": kind}
        changes["metric"] = MAIN_METRICS[changes["kind"]]
        changes["max_length"] = task.max_length or spec.max_length
        changes |= {"label_names": task.label_names, **_parts_of_hub(task)}
    if task.metric:
        changes["metric"] = task.metric
    try:
        return replace(spec, **changes)
    except ValueError as error:
        raise UserError(f"tasks.{task.name}: {error}") from error
