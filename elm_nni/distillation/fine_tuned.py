"""A teacher that was fine-tuned on the task as a whole: by the user, or here.

Shape suffixes: B batch, T tokens, C classes.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from elm_nni.distillation.features import Features
from elm_nni.distillation.teacher import Teacher
from elm_nni.errors import UserError

logger = logging.getLogger(__name__)

# Upper and lower case, accents, punctuation, digits and a rare word tell tokenizers of one vocabulary apart.
_SAMPLE_TEXTS = ("Hello, World!", "Crème brûlée für 42 Gäste?", "antidisestablishmentarianism isn't e-mail: a_b/c")


class FineTunedClassifier:
    """A sequence classification (or regression) model as a teacher: features and logits from one forward. Frozen.

    Built by :func:`load_classifier`; has the same methods as ``TeacherClassifier``.
    """

    def __init__(self, model: Any, *, tokenizer: Any = None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.teacher = Teacher(model.base_model, tokenizer=tokenizer)

    @property
    def num_labels(self) -> int:
        return int(self.model.config.num_labels)

    @torch.no_grad()
    def features_and_logits(
        self, input_ids: Tensor, attention_mask: Tensor, *, token_type_ids: Tensor | None = None
    ) -> tuple[Features, Tensor]:
        """Features as of ``Teacher.features``, and logits (B, C), without gradient."""
        features, output = self.teacher.run(self.model, input_ids, attention_mask, token_type_ids=token_type_ids)
        return features, output.logits

    def logits(
        self, input_ids: Tensor, attention_mask: Tensor, *, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Logits, or predicted targets of a regression, (B, C), without gradient."""
        return self.features_and_logits(input_ids, attention_mask, token_type_ids=token_type_ids)[1]


def load_classifier(
    folder: str | Path, label_names: Sequence[str], tokenizer: Any, *, device: str | torch.device = "cpu"
) -> FineTunedClassifier:
    """Load a user's fine-tuned classifier, after checking that it means the same labels and tokens.

    Args:
        folder: written by ``save_pretrained``, tokenizer included.
        label_names: the task's classes in the order of their numbers; one name for a regression.
        tokenizer: the one that the student is trained with.

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
    if not any("ForSequenceClassification" in kind for kind in config.architectures or ()):
        raise UserError(f"classifier {name!r} holds {config.architectures}: must be a sequence classification model")
    own_names = [config.id2label[number] for number in sorted(config.id2label)]
    # a regression has one output, and its name says nothing
    if len(own_names) != len(label_names) or (len(own_names) > 1 and own_names != list(label_names)):
        raise UserError(
            f"classifier {name!r} has labels {own_names}: must be the task's, {list(label_names)}, in this order "
            "(id2label in its config.json)"
        )
    _check_tokenizers(name, own_tokenizer, tokenizer)
    model = AutoModelForSequenceClassification.from_pretrained(name, dtype=torch.float32)
    return FineTunedClassifier(model.to(device), tokenizer=own_tokenizer)


def fine_tune_teacher(
    teacher: Teacher,
    input_ids: Sequence[Sequence[int]],
    labels: Tensor,
    label_names: Sequence[str],
    folder: str | Path,
    *,
    token_type_ids: Sequence[Sequence[int]] | None = None,
    epochs: int = 2,
    lr: float = 5e-5,
    batch_size: int = 32,
    seed: int = 0,
) -> Path:
    """Fine-tune a copy of the whole teacher on a task and save it as a sequence classification model.

    AdamW (weight decay 0.01), warm-up over a tenth of the steps, linear decay, clipping at 1. Initialisation of the
    head, batch order and dropout depend on ``seed`` alone; torch's own generators are left as they were.

    Args:
        input_ids: token ids of each row, special tokens included, cut to the teacher's length.
        labels: class numbers (N,) of an integer type, or float targets (N,) for a regression.
        label_names: names of the classes; one name for a regression.
        folder: where model and tokenizer are written; readable by :func:`load_classifier`.
        token_type_ids: segment of each token, for pairs of texts; None where the tokenizer has none.

    Returns:
        The folder.

    Raises:
        UserError: no rows, class numbers outside the names, or a teacher of a family without classification model.
        ValueError: a setting out of range, or another number of labels than rows.

    Example::

        fine_tune_teacher(teacher, ids, labels_N, ["negative", "positive"], "./teacher-polarity", epochs=2)
    """
    _check_settings(input_ids, labels, label_names, epochs=epochs, lr=lr, batch_size=batch_size)
    if token_type_ids is not None and [len(row) for row in token_type_ids] != [len(row) for row in input_ids]:
        raise ValueError("token_type_ids have other lengths than input_ids: must have one for each token")
    tokenizer = teacher.tokenizer
    with torch.random.fork_rng(devices=[teacher.device] if teacher.device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = _with_task_head(teacher, label_names, regression=labels.is_floating_point())
        _train(model, input_ids, token_type_ids, labels, epochs=epochs, lr=lr, batch_size=batch_size)
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


def _check_settings(
    input_ids: Sequence[Sequence[int]],
    labels: Tensor,
    label_names: Sequence[str],
    *,
    epochs: int,
    lr: float,
    batch_size: int,
) -> None:
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    if not lr > 0:
        raise ValueError(f"lr={lr}: must be above 0")
    if labels.ndim != 1 or len(labels) != len(input_ids):
        raise ValueError(f"labels have shape {tuple(labels.shape)}: must be ({len(input_ids)},), one a row")
    if len(input_ids) == 0:
        raise UserError("fine-tuning on 0 rows: the task needs training rows")
    if labels.is_floating_point():
        if len(label_names) != 1:
            raise ValueError(f"label_names has {len(label_names)} entries: must be 1 for a regression")
    elif len(label_names) < 2:
        raise UserError(f"the task has one class ({list(label_names)}): a classifier needs at least 2")
    elif labels.min() < 0 or labels.max() >= len(label_names):
        raise UserError(f"labels range over {labels.min()}..{labels.max()}: must be in 0..{len(label_names) - 1}")


def _with_task_head(teacher: Teacher, label_names: Sequence[str], *, regression: bool) -> Any:
    """The task model of the teacher's family: a new head on a copy of the teacher."""
    refusal = UserError(f"teacher {teacher.name!r} has no classification model in transformers: use a linear head")
    config = copy.deepcopy(teacher.config)
    config.id2label = dict(enumerate(label_names))
    config.label2id = {name: number for number, name in enumerate(label_names)}
    config.problem_type = "regression" if regression else "single_label_classification"
    try:
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
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
    model: Any, input_ids: Sequence[Sequence[int]], token_type_ids: Sequence[Sequence[int]] | None, labels: Tensor, *,
    epochs: int, lr: float, batch_size: int,
) -> None:  # fmt: skip
    num_steps = epochs * -(-len(input_ids) // batch_size)
    warm_up = max(1, num_steps // 10)
    optimizer = AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, (num_steps - step) / max(1, num_steps - warm_up))
    )
    device = model.get_input_embeddings().weight.device
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(input_ids)).split(batch_size):
            ids = [torch.tensor(list(input_ids[row]), device=device) for row in rows.tolist()]
            mask_BT = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
            ids_BT = pad_sequence(ids, batch_first=True, padding_value=model.config.pad_token_id)
            inputs = {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": labels[rows].to(device)}
            if token_type_ids is not None:
                types = [torch.tensor(list(token_type_ids[row]), device=device) for row in rows.tolist()]
                inputs["token_type_ids"] = pad_sequence(types, batch_first=True)
            loss = model(**inputs).loss
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        logger.info("Teacher fine-tuning, epoch %d of %d: loss %.4f", epoch + 1, epochs, total / len(input_ids))
    model.eval()
