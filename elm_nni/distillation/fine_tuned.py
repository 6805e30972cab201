"""A teacher that was fine-tuned on the task as a whole: by the user, or here.

Shape suffixes: B batch, T tokens, C outputs.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoConfig, AutoTokenizer

from elm_nni.data.outputs import TokenizedRows
from elm_nni.distillation.features import Features
from elm_nni.distillation.teacher import Teacher
from elm_nni.errors import UserError
from elm_nni.kinds import KINDS, TaskKind, logits_of

logger = logging.getLogger(__name__)

# Upper and lower case, accents, punctuation, digits and a rare word tell tokenizers of one vocabulary apart.
_SAMPLE_TEXTS = ("Hello, World!", "Crème brûlée für 42 Gäste?", "antidisestablishmentarianism isn't e-mail: a_b/c")


class FineTunedClassifier:
    """A model of transformers with a task head as a teacher: features and logits from one forward. Frozen.

    Built by :func:`load_classifier`; has the same methods as ``TeacherClassifier``.
    """

    def __init__(self, model: Any, *, tokenizer: Any = None, token_map: Any = None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.teacher = Teacher(model.base_model, tokenizer=tokenizer, token_map=token_map)

    @property
    def num_labels(self) -> int:
        return int(self.model.config.num_labels)

    @torch.no_grad()
    def features_and_logits(
        self, input_ids: Tensor, attention_mask: Tensor, *, token_type_ids: Tensor | None = None
    ) -> tuple[Features, Tensor]:
        """Features as of ``Teacher.features``, and logits (B, C) or (B, T, C), without gradient."""
        features, output = self.teacher.run(self.model, input_ids, attention_mask, token_type_ids=token_type_ids)
        return features, logits_of(output)

    def logits(
        self, input_ids: Tensor, attention_mask: Tensor, *, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Logits, or predicted targets of a regression, (B, C) or (B, T, C), without gradient."""
        return self.features_and_logits(input_ids, attention_mask, token_type_ids=token_type_ids)[1]


def load_classifier(
    folder: str | Path, label_names: Sequence[str], tokenizer: Any, *, kind: str = "classification",
    token_map: Any = None, device: str | torch.device = "cpu",
) -> FineTunedClassifier:  # fmt: skip
    """Load a user's fine-tuned classifier, after checking that it means the same labels and tokens.

    Args:
        folder: written by ``save_pretrained``, tokenizer included.
        label_names: the task's classes in the order of their numbers; one name for a regression, not read for answers.
        tokenizer: the teacher's.
        kind: of the task, a key of ``KINDS``.
        token_map: as of ``Teacher``, where the student keeps a part of the vocabulary.

    Raises:
        UserError: nothing to load, another number or order of labels, another vocabulary, or other token ids for
            the same text.

    Example::

        load_classifier("./my-sst2-bert", ["negative", "positive"], teacher.tokenizer).logits(ids_BT, mask_BT)
    """
    name = str(folder)
    try:
        config = AutoConfig.from_pretrained(name)
        own_tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"classifier {name!r} cannot be loaded: {str(error).partition(chr(10))[0]}") from error
    auto_class = KINDS[kind].auto_class
    if not any(auto_class.removeprefix("AutoModel") in found for found in config.architectures or ()):
        raise UserError(f"classifier {name!r} holds {config.architectures}: must be a model of {auto_class}")
    own_names = [config.id2label[number] for number in sorted(config.id2label)]
    # a regression has one output, and its name says nothing, nor do those of an answer's first and last token
    differ = len(own_names) != len(label_names) or (len(own_names) > 1 and own_names != list(label_names))
    if KINDS[kind].num_labels is None and differ:
        raise UserError(
            f"classifier {name!r} has labels {own_names}: must be the task's, {list(label_names)}, in this order "
            "(id2label in its config.json)"
        )
    _check_tokenizers(name, own_tokenizer, tokenizer)
    model = getattr(transformers, auto_class).from_pretrained(name, dtype=torch.float32)
    return FineTunedClassifier(model.to(device), tokenizer=own_tokenizer, token_map=token_map)


def fine_tune_teacher(
    teacher: Teacher,
    rows: TokenizedRows,
    label_names: Sequence[str],
    folder: str | Path,
    *,
    kind: str = "classification",
    epochs: int = 2,
    lr: float = 5e-5,
    batch_size: int = 32,
    seed: int = 0,
) -> Path:
    """Fine-tune a copy of the whole teacher on a task and save it as a task model of transformers.

    AdamW (weight decay 0.01), warm-up over a tenth of the steps, linear decay, clipping at 1. Initialisation of the
    head, batch order and dropout depend on ``seed`` alone; torch's own generators are left as they were.

    Args:
        rows: the training split.
        label_names: names of the classes; one name for a regression, not read for answers.
        folder: where model and tokenizer are written; readable by :func:`load_classifier`.
        kind: of the task, a key of ``KINDS``.

    Returns:
        The folder.

    Raises:
        UserError: no rows, class numbers outside the names, or a teacher of a family without such a task model.
        ValueError: a setting out of range.

    Example::

        fine_tune_teacher(teacher, TaskRows(data.train, tokenizer, 64), data.label_names, "./teacher-polarity")
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    if not lr > 0:
        raise ValueError(f"lr={lr}: must be above 0")
    if len(rows) == 0:
        raise UserError("fine-tuning on 0 rows: the task needs training rows")
    KINDS[kind].check_labels(rows.labels, label_names)
    tokenizer = teacher.tokenizer
    with torch.random.fork_rng(devices=[teacher.device] if teacher.device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = _with_task_head(teacher, KINDS[kind], label_names)
        _train(model, rows, KINDS[kind], teacher.model_ids, epochs=epochs, lr=lr, batch_size=batch_size)
    folder = Path(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _check_tokenizers(name: str, own: Any, expected: Any) -> None:
    own_vocabulary, vocabulary = own.get_vocab(), expected.get_vocab()
    if own_vocabulary != vocabulary:
        differing = len(own_vocabulary.items() ^ vocabulary.items())
        raise UserError(
            f"classifier {name!r} has another vocabulary ({len(own_vocabulary)} tokens, {len(vocabulary)} expected, "
            f"{differing} entries differ): it must be the student's"
        )
    for text in _SAMPLE_TEXTS:
        if own(text)["input_ids"] != expected(text)["input_ids"]:
            raise UserError(
                f"classifier {name!r} splits {text!r} into other token ids: its tokenizer must be the student's"
            )


def _with_task_head(teacher: Teacher, kind: TaskKind, label_names: Sequence[str]) -> Any:
    """The task model of the teacher's family: a new head on a copy of the teacher."""
    way_out = "use another teacher" if kind.linear_head is None else "use a linear head"
    refusal = UserError(f"teacher {teacher.name!r} has no {kind.name} model in transformers: {way_out}")
    config = copy.deepcopy(teacher.config)
    if kind.num_labels is None:
        config.id2label = dict(enumerate(label_names))
        config.label2id = {name: number for number, name in enumerate(label_names)}
    else:
        config.num_labels = kind.num_labels
    config.problem_type = kind.problem_type
    try:
        model = getattr(transformers, kind.auto_class).from_config(config, dtype=torch.float32)
    except ValueError as error:
        raise refusal from error
    # a pooler that the task model does not use may be left over, but nothing of its body may stay untrained
    if model.base_model.load_state_dict(teacher.model.state_dict(), strict=False).missing_keys:
        raise refusal
    if model.config.pad_token_id is None:
        # a decoder finds the last token of a row by the padding after it
        model.config.pad_token_id = teacher.tokenizer.pad_token_id
        if model.config.pad_token_id is None:
            raise UserError(f"teacher {teacher.name!r} has no padding token: fine-tuning in batches needs one")
    return model.to(teacher.device)


def _train(
    model: Any, rows: TokenizedRows, kind: TaskKind, model_ids: Callable[[Tensor], Tensor], *, epochs: int, lr: float,
    batch_size: int,
) -> None:  # fmt: skip
    num_steps = epochs * -(-len(rows) // batch_size)
    warm_up = max(1, num_steps // 10)
    optimizer = AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, (num_steps - step) / max(1, num_steps - warm_up))
    )
    device = model.get_input_embeddings().weight.device
    known = {"input_ids", "attention_mask", "token_type_ids"} & set(inspect.signature(model.forward).parameters)
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(rows)).split(batch_size):
            batch = rows.batch(chosen.tolist())
            batch["input_ids"] = model_ids(batch["input_ids"])
            inputs = {name: value for name, value in batch.items() if name in known} | kind.labelled(batch)
            loss = model(**{name: value.to(device) for name, value in inputs.items()}).loss
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
        logger.info("Teacher fine-tuning, epoch %d of %d: loss %.4f", epoch + 1, epochs, total / len(rows))
    model.eval()
