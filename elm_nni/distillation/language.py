"""A teacher's language-model head: its own, or one fitted here where it has none.

Shape suffixes: B batch, T tokens, D hidden, V vocabulary, M tokens that count.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from elm_nni.data.offline import teacher_folder
from elm_nni.distillation.features import Features
from elm_nni.distillation.student import teacher_features
from elm_nni.distillation.teacher import Teacher
from elm_nni.errors import UserError, first_line
from elm_nni.modeling.heads_elm import IGNORED_LABEL
from elm_nni.training import optimizer_and_schedule

logger = logging.getLogger(__name__)

Batch = Mapping[str, Any]
LanguageHead = Callable[[Tensor], Tensor]


class _Given(nn.Module):
    """Stands for a body whose last hidden states are known."""

    hidden_BTD: Tensor

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPastAndCrossAttentions:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self.hidden_BTD)


class OwnHead:
    """The head of a language model of transformers, whatever its parts, on hidden states of its body. Frozen.

    Args:
        model: a causal or masked language model; its body is put aside.

    Raises:
        UserError: the model's head cannot run without its body.

    Example::

        OwnHead.load("gpt2", "AutoModelForCausalLM")(teacher.features(ids_BT).hidden[-1])   # (B, T, V)
    """

    def __init__(self, model: Any) -> None:
        self.model, self._given = model.eval().requires_grad_(False), _Given()
        width = model.get_input_embeddings().weight.shape[-1]
        setattr(model, model.base_model_prefix, self._given)
        width = getattr(model.config, "hidden_size", width)
        try:
            self(torch.zeros(1, 2, width))
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
            name = type(model).__name__
            raise UserError(f"the head of teacher {name} does not run by itself: {first_line(error)}") from error

    @classmethod
    def load(cls, name: str, auto_class: str) -> OwnHead:
        """The head of a hub model or folder.

        Args:
            name: as of ``Teacher.load``.
            auto_class: ``AutoModelForCausalLM`` or ``AutoModelForMaskedLM``.

        Raises:
            UserError: there is no such model, or it was saved without a head.
        """
        path = str(teacher_folder() if name == "offline" else name)
        suffix = auto_class.removeprefix("AutoModel")
        try:
            architectures = AutoConfig.from_pretrained(path).architectures or []
            if not any(suffix in one or "LMHead" in one or "ForPreTraining" in one for one in architectures):
                raise UserError(
                    f"teacher {name!r} has no language-model head (it holds {', '.join(architectures) or 'none'}); "
                    "set teacher.lm_head=refit to fit one"
                )
            return cls(getattr(transformers, auto_class).from_pretrained(path, dtype=torch.float32))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"teacher {name!r} cannot be loaded as {auto_class}: {first_line(error)}") from error

    @torch.no_grad()
    def __call__(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., D) to logits (..., V), without gradient."""
        self.model.to(hidden.device)
        self._given.hidden_BTD = hidden.reshape(1, -1, hidden.shape[-1])
        ids = torch.zeros(self._given.hidden_BTD.shape[:2], dtype=torch.long, device=hidden.device)
        logits: Tensor = self.model(input_ids=ids).logits
        return logits.reshape(*hidden.shape[:-1], logits.shape[-1])


class FittedHead(nn.Module):
    """A head for a teacher that has none: a layer, GELU, norm and the teacher's own token table, with a bias.

    Of BERT's form (arXiv 1810.04805); the token table stays as it is.

    Args:
        teacher: its width and token table; a table of another width is reached by the layer.
    """

    table_VE: Tensor

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        table_VE = teacher.token_embeddings.float().cpu()
        self.dense = nn.Linear(teacher.width, table_VE.shape[1])
        self.norm = nn.LayerNorm(table_VE.shape[1])
        self.bias = nn.Parameter(torch.zeros(table_VE.shape[0]))
        # not saved with the head: it is the teacher's
        self.register_buffer("table_VE", table_VE, persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., D) to logits (..., V)."""
        return functional.linear(self.norm(functional.gelu(self.dense(hidden.float()))), self.table_VE, self.bias)

    def save(self, path: Path) -> None:
        """Write the head to one safetensors file."""
        save_file(self.state_dict(), path)

    @classmethod
    def load(cls, path: Path, teacher: Teacher) -> FittedHead:
        """Read a head of this teacher, frozen."""
        head = cls(teacher)
        head.load_state_dict(load_file(path))
        return head.eval().requires_grad_(False)


def fit_head(
    teacher: Teacher, batch_of: Callable[[int], Batch], *, steps: int, lr: float = 1e-3,
    log: Callable[[int, float], None] = lambda step, loss: None,
) -> FittedHead:  # fmt: skip
    """Fit a head on a frozen teacher's features by the likelihood of the labels.

    Args:
        teacher: frozen.
        batch_of: step to a batch with ``input_ids``, ``attention_mask``, ``document_ids`` and ``labels`` (B, T).
        steps: of AdamW, with warm-up and linear decay.
        lr: the highest learning rate.
        log: told step and mean loss now and then.

    Call it with seeded generators: the layer is drawn here.
    """
    head = FittedHead(teacher).to(teacher.device)
    made = optimizer_and_schedule(head, steps=steps, lr=lr)
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    losses: list[float] = []
    for step in range(steps):
        batch = batch_of(step)
        counted_BT = batch["labels"] != IGNORED_LABEL
        hidden_MD = teacher_features(teacher, batch).hidden[-1][counted_BT].float()
        loss = functional.cross_entropy(head(hidden_MD), batch["labels"][counted_BT].to(hidden_MD.device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == steps:
            log(step + 1, sum(losses) / len(losses))
            losses = []
    return head.cpu().eval().requires_grad_(False)


class LanguageTeacher:
    """A teacher with a language-model head. Frozen, not an ``nn.Module``.

    Args:
        teacher: the body.
        head: hidden states (..., D) to logits (..., V).

    Example::

        LanguageTeacher(Teacher.load("gpt2"), OwnHead.load("gpt2", "AutoModelForCausalLM")).logits(batch)   # (M, V)
    """

    def __init__(self, teacher: Teacher, head: LanguageHead) -> None:
        self.teacher, self.head = teacher, head

    @torch.no_grad()
    def logits(self, batch: Batch, features: Features | None = None) -> Tensor:
        """Logits (M, V) where the labels of a batch count, on the batch's device.

        Args:
            features: the teacher's for this batch, where they are known already.
        """
        features = features or teacher_features(self.teacher, batch)
        logits_MV: Tensor = self.head(features.hidden[-1][batch["labels"] != IGNORED_LABEL].float())
        # a head of the teacher's own knows tokens that the student does not keep; a fitted one has the student's
        kept = self.teacher.token_map if isinstance(self.head, OwnHead) else None
        return logits_MV if kept is None else logits_MV[:, kept.to(logits_MV.device)]
