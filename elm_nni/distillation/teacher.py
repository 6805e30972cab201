"""A frozen model of transformers as the teacher of a distillation.

Shape suffixes: B batch, T tokens, D hidden, V vocabulary, E embedding size.
"""

from __future__ import annotations

import copy
import inspect
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from elm_nni.data.offline import teacher_folder
from elm_nni.distillation.attention_blocks import find_attention_blocks, find_layers
from elm_nni.distillation.features import Features
from elm_nni.distillation.packing import Unpacked, block_diagonal_mask, document_positions
from elm_nni.distillation.taps import Taps
from elm_nni.errors import UserError, first_line
from elm_nni.files import is_path, local_path

logger = logging.getLogger(__name__)

# Of the largest feature: what two forwards of the same tokens may differ by.
_SAME = 1e-3
# Encoders that hand a four-dimensional mask to their attention as it is and learn absolute positions.
_TAKES_BLOCK_MASK = {"bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert"}


class Teacher:
    """Any encoder or decoder of transformers (of an encoder-decoder model: its encoder), frozen and in eval mode.

    Not an ``nn.Module`` on purpose: as an attribute of a module it stays out of its parameters, optimizer and
    checkpoint. A deep copy of its owner shares it.

    Args:
        model: a base model without task head; it is frozen in place.
        tokenizer: loaded from the model's own name when first asked for, if not given.
        token_map: (V,) the model's id of each id that it will be given, where these are a student's smaller vocabulary
            (``TrimmedVocabulary.kept_ids_V``); ``tokenizer`` stays the model's own.

    Raises:
        UserError: the model takes no token ids, a mapped id has no row in its table, or its forward shows no hidden
            states of one length and width.

    Example::

        teacher = Teacher.load("bert-base-uncased")
        teacher.features(ids_BT, mask_BT).hidden[-1]   # (B, T, 768)
    """

    def __init__(self, model: Any, *, tokenizer: Any = None, token_map: Any = None) -> None:
        if getattr(model.config, "is_encoder_decoder", False):
            model = model.get_encoder()
        self.model: Any = model.eval().requires_grad_(False)
        self.config = model.config
        self._tokenizer = tokenizer
        self._token_map_V: Tensor | None = None if token_map is None else self._checked_map(token_map)
        self._attention_paths: list[str] | None = None
        self._attention_is_input = False
        features = self._probe()
        self.num_layers = len(features.hidden)
        self.width = features.hidden[0].shape[-1]
        assert features.embedding_BTD is not None
        self.embedding_width = features.embedding_BTD.shape[-1]
        self.attention_width = self._find_attention()

    @classmethod
    def load(
        cls, name: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> Teacher:
        """Load a model of the hub or of a local folder; ``offline`` is the packaged all-MiniLM-L6-v2.

        Raises:
            UserError: nothing to load under that name, or a model that cannot teach.
        """
        if is_path(str(name)) and not local_path(str(name)).is_dir():
            raise UserError(f"teacher {str(name)!r}: there is no such folder")
        try:
            model = AutoModel.from_pretrained(teacher_folder() if name == "offline" else str(name), dtype=dtype)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"teacher {str(name)!r} cannot be loaded: {first_line(error)}") from error
        return cls(model.to(device))

    def with_token_map(self, token_map: Any) -> Teacher:
        """The same model, not copied, for ids of a smaller vocabulary; see ``token_map`` of the class.

        Raises:
            UserError: a mapped id has no row in the model's table.

        Example::

            teacher.with_token_map(trimmed.kept_ids_V).features(student_ids_BT, mask_BT)
        """
        mapped = copy.copy(self)
        mapped._token_map_V = self._checked_map(token_map)
        return mapped

    def _checked_map(self, token_map: Any) -> Tensor:
        map_V = torch.as_tensor(token_map, dtype=torch.long, device=self.device)
        num_rows = self._table_VE.shape[0]
        if len(map_V) == 0 or map_V.min() < 0 or map_V.max() >= num_rows:
            raise UserError(f"token map of teacher {self.name!r} leaves its {num_rows} tokens: another vocabulary")
        return map_V

    @property
    def token_map(self) -> Tensor | None:
        """The model's id of each id that the teacher is given, (V,); None where they are the same."""
        return self._token_map_V

    def model_ids(self, input_ids: Tensor) -> Tensor:
        """The model's ids, on its device, of the ids that the teacher is given."""
        ids = input_ids.to(self.device)
        return ids if self._token_map_V is None else self._token_map_V[ids]

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self

    @property
    def name(self) -> str:
        """Name or folder that the model was loaded from, its class if it was built in memory."""
        return str(getattr(self.config, "_name_or_path", "") or type(self.model).__name__)

    @property
    def tokenizer(self) -> Any:
        """The teacher's tokenizer.

        Raises:
            UserError: none was given and none is stored with the model.
        """
        if self._tokenizer is None:
            if not getattr(self.config, "_name_or_path", ""):
                raise UserError(f"teacher {self.name!r} was built in memory and has no tokenizer: give it one")
            try:
                self._tokenizer = AutoTokenizer.from_pretrained(self.name)
            except (OSError, ValueError, KeyError) as error:
                raise UserError(f"teacher {self.name!r} has no tokenizer: {first_line(error)}") from error
        return self._tokenizer

    @property
    def token_embeddings(self) -> Tensor:
        """The token table, (V, E), without gradient; with a token map the rows of its V tokens, a copy."""
        return self._table_VE if self._token_map_V is None else self._table_VE[self._token_map_V]

    @property
    def _table_VE(self) -> Tensor:
        table_VE: Tensor = self.model.get_input_embeddings().weight.detach()
        return table_VE

    @property
    def vocab_size(self) -> int:
        """Ids that the teacher takes: rows of the token table, or of the token map."""
        return len(self._table_VE if self._token_map_V is None else self._token_map_V)

    @property
    def device(self) -> torch.device:
        return self._table_VE.device

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def widths(self) -> dict[str, int]:
        """Width of each kind of feature, as ``FeatureDistiller`` takes it; no ``attention`` where there is none."""
        widths = {"embedding": self.embedding_width, "hidden": self.width}
        return widths if self.attention_width is None else {**widths, "attention": self.attention_width}

    def to(self, device: str | torch.device) -> Teacher:
        """Move the model; features are returned on its device."""
        self.model.to(device)
        if self._token_map_V is not None:
            self._token_map_V = self._token_map_V.to(self.device)
        return self

    def save(self, folder: str | Path) -> Path:
        """Write the model, and the tokenizer if it was given or loaded, as transformers does."""
        folder = Path(folder)
        self.model.save_pretrained(folder)
        if self._tokenizer is not None:
            self._tokenizer.save_pretrained(folder)
        return folder

    @torch.no_grad()
    def features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        token_type_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
    ) -> Features:
        """Embedding output, layer outputs and attention-block outputs, without gradient.

        With ``document_ids`` a row may hold several documents: the features are those of each document on its own, with
        positions from 0. BERT-like encoders get a block-diagonal mask; every other model gets one
        row a document. Features at padding have no meaning.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), 1 for valid tokens.
            token_type_ids: (B, T), ignored by models that know no segments.
            document_ids: (B, T), 0 for padding, else the number of the document; a document is contiguous.
        """
        if document_ids is None:
            return self.run(self.model, input_ids, attention_mask, token_type_ids=token_type_ids)[0]
        document_ids = document_ids.to(self.device)
        if attention_mask is not None:
            document_ids = document_ids.masked_fill(attention_mask.to(self.device) == 0, 0)
        if self._takes_block_mask():
            return self._features_masked(input_ids, document_ids, token_type_ids)
        return self._features_unpacked(input_ids, document_ids, token_type_ids)

    def reads_ahead(self) -> bool:
        """Whether features of a token depend on later tokens, as those of an encoder do.

        Such a teacher knows the next token that it is asked to predict.
        """
        ids_BT = (torch.arange(1, 9, device=self.device).unsqueeze(0) % self.vocab_size).repeat(2, 1)
        ids_BT[1, -1] = (ids_BT[1, -1] + self.vocab_size // 2) % self.vocab_size
        one_TD, other_TD = self.features(ids_BT, torch.ones_like(ids_BT)).hidden[-1][:, :-1].float()
        return bool((one_TD - other_TD).abs().max() > _SAME * one_TD.abs().max())

    def run(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> tuple[Features, Any]:
        """One forward of ``model``, which is the teacher or holds it (a task model); features and own output."""
        known = inspect.signature(model.forward).parameters
        given: dict[str, Any] = {
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
        }
        inputs = {name: value.to(self.device) for name, value in given.items() if value is not None and name in known}
        if "use_cache" in known:
            inputs["use_cache"] = False
        with self._taps() as taps:
            output = model(input_ids=self.model_ids(input_ids), output_hidden_states=True, return_dict=True, **inputs)
        hidden = getattr(output, "hidden_states", None)
        if not hidden or len(hidden) < 2:
            raise UserError(f"teacher {self.name!r} gives no hidden states: feature distillation needs one per layer")
        attention = None if self._attention_paths is None else [taps[path] for path in self._attention_paths]
        return Features(hidden[0], list(hidden[1:]), attention), output

    def _taps(self) -> Taps:
        paths = {path: path for path in self._attention_paths or ()}
        return Taps(self.model, inputs=paths) if self._attention_is_input else Taps(self.model, paths)

    def _probe(self) -> Features:
        if "input_ids" not in inspect.signature(self.model.forward).parameters:
            raise UserError(f"teacher {self.name!r} takes no input_ids: it must be a text encoder or decoder")
        ids_BT = torch.arange(1, 5, device=self.device).unsqueeze(0) % self.vocab_size
        try:
            features = self.features(ids_BT, torch.ones_like(ids_BT))
        except UserError:
            raise
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise UserError(f"teacher {self.name!r} does not run on token ids: {first_line(error)}") from error
        if len({layer_BTD.shape for layer_BTD in features.hidden}) > 1 or features.hidden[0].shape[:2] != ids_BT.shape:
            shapes = [tuple(layer_BTD.shape[1:]) for layer_BTD in features.hidden]
            raise UserError(f"teacher {self.name!r} has hidden states of shapes {shapes}: all must be of one shape")
        return features

    def _find_attention(self) -> int | None:
        """Bind the attention-block outputs and return their width; None, with a warning, where there are none."""
        found = find_attention_blocks(self.model, self.config, self.num_layers)
        if found is not None:
            self._attention_paths, self._attention_is_input = found.paths, found.is_input
            shapes = {layer_BTD.shape[2:] for layer_BTD in self._probe().attention or ()}
            if len(shapes) == 1:
                return int(shapes.pop()[0])
            self._attention_paths = None
        logger.warning("Teacher %r shows no attention-block outputs: hidden states only", self.name)
        return None

    def _takes_block_mask(self) -> bool:
        config = self.config
        return (
            config.model_type in _TAKES_BLOCK_MASK
            and not getattr(config, "is_decoder", False)
            and config._attn_implementation in ("sdpa", "eager")
            and "position_ids" in inspect.signature(self.model.forward).parameters
        )

    def _features_masked(self, input_ids: Tensor, document_ids: Tensor, token_type_ids: Tensor | None) -> Features:
        positions_BT = document_positions(document_ids)
        padding_position = self._padding_position()
        if padding_position is not None:
            positions_BT = (positions_BT + padding_position + 1).masked_fill(document_ids == 0, padding_position)
        mask_B1TT = block_diagonal_mask(document_ids, self._table_VE.dtype)
        return self.run(
            self.model, input_ids, mask_B1TT, token_type_ids=token_type_ids, position_ids=positions_BT
        )[0]

    def _padding_position(self) -> int | None:
        """RoBERTa reserves a position for padding and counts from the one after it."""
        for path, module in self.model.named_modules():
            if path.endswith("position_embeddings") and isinstance(module, nn.Embedding):
                return module.padding_idx
        return None

    def _features_unpacked(self, input_ids: Tensor, document_ids: Tensor, token_type_ids: Tensor | None) -> Features:
        rows = Unpacked.of(document_ids)
        shape_BT = (document_ids.shape[0], document_ids.shape[1])
        # -1 and None occur as "no padding id"; any id will do behind a mask
        padding = max(getattr(self.config, "pad_token_id", None) or 0, 0)
        if self._token_map_V is not None:
            places = (self._token_map_V == padding).nonzero()
            padding = int(places[0]) if len(places) else 0
        types = None if token_type_ids is None else rows.split(token_type_ids.to(self.device), 0)
        found = self.features(
            rows.split(input_ids.to(self.device), padding), rows.mask_NL.long(), token_type_ids=types
        )
        assert found.embedding_BTD is not None
        return Features(
            rows.join(found.embedding_BTD, shape_BT),
            [rows.join(layer, shape_BT) for layer in found.hidden],
            None if found.attention is None else [rows.join(layer, shape_BT) for layer in found.attention],
        )


def first_layers(teacher: Teacher, keep: int) -> Teacher:
    """A copy of the teacher with its first ``keep`` layers, everything else as it is.

    Raises:
        UserError: ``keep`` is not one of its numbers of layers, or the layers are no list of modules (shared layers,
            for example).

    Example::

        first_layers(Teacher.load("bert-base-uncased"), 6).num_layers   # 6
    """
    path = find_layers(teacher.model, teacher.num_layers)
    if not 1 <= keep <= teacher.num_layers or path is None or not hasattr(teacher.config, "num_hidden_layers"):
        raise UserError(f"teacher {teacher.name!r} has {teacher.num_layers} layers that cannot be cut to {keep}")
    model = copy.deepcopy(teacher.model)
    parent_path, _, attribute = path.rpartition(".")
    layers = model.get_submodule(path)
    setattr(model.get_submodule(parent_path), attribute, nn.ModuleList(list(layers.children())[:keep]))
    layer_types = getattr(model.config, "layer_types", None)
    if layer_types is not None:
        model.config.layer_types = layer_types[:keep]
    model.config.num_hidden_layers = keep
    return Teacher(model, tokenizer=teacher._tokenizer, token_map=teacher._token_map_V)
