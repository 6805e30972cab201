"""Configuration of an ELM model: one entry a layer, and the sizes that all layers share."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from transformers.configuration_utils import PreTrainedConfig

from .blocks_elm import BLOCKS

LAYER_FIELDS = ("block", "ffn_size", "num_heads", "head_dim")
# The field of a layer and the last word of its label in the flat architecture.
_LABELS = {"ffn_size": "ffn", "num_heads": "heads", "head_dim": "head_dim"}
_POOLINGS = ("cls", "mean", "last")
# Where a configuration comes from, rather than what it describes.
_BOOKKEEPING = ("_name_or_path", "architectures", "auto_map", "dtype", "transformers_version")


class ElmConfig(PreTrainedConfig):
    """Everything needed to build an ELM model.

    Args:
        vocab_size: Number of tokens in the table.
        hidden_size: Width between the layers.
        num_hidden_layers: Number of layers; derived from ``layers``, may be left out. Without ``layers`` it says how
            many default layers there are (12).
        embedding_size: Width of the token table.
        bottleneck_size: Width inside MobileBERT blocks.
        max_position_embeddings: Longest sequence (of one document, when packed).
        type_vocab_size: Number of segment types.
        is_causal: Decoder: no token sees a later one, in attention or in the embedding.
        layers: One dict a layer, ``{"block": "bert_kv", "ffn_size": 132, "num_heads": 12, "head_dim": 44}``. None
            gives BERT blocks with 12 heads and feed-forward width 132.
        hidden_dropout_prob: Dropout of embeddings, projections and feed-forward outputs, in [0, 1].
        attention_probs_dropout_prob: Dropout of the attention weights, in [0, 1].
        layer_norm_eps: Added to the variance in every LayerNorm.
        initializer_range: Standard deviation of fresh weights.
        classifier_dropout: Dropout before a task head; None takes ``hidden_dropout_prob``.
        classifier_pooling: What a sentence is read from: ``"cls"`` (its first valid token), ``"mean"`` (over valid
            tokens) or ``"last"`` (its last valid token). None: ``"last"`` when causal, else ``"cls"``.
        sentence_embedding_size: Width of a sentence embedding; None: the hidden size, without a projection.
        normalize_embeddings: Sentence embeddings have length 1.
        pad_token_id: Token of padding; padding itself is told by the attention mask.
        bos_token_id: Token that begins a sequence, read by ``generate``.
        eos_token_id: Token or tokens that end a sequence, read by ``generate``.
        tie_word_embeddings: The language-model head uses the token table.
        **kwargs: What every transformers configuration takes (``num_labels``, ``id2label``, ``problem_type``, ...).

    Raises:
        ValueError: An unknown block, a size below one, a probability outside [0, 1], or ``num_hidden_layers``
            that disagrees with ``layers``.

    Example:
        >>> config = ElmConfig(layers=[{"block": "bert_kv", "ffn_size": 132, "num_heads": 12, "head_dim": 44}])
        >>> config.architecture["layer0"]
        'bert_kv'
    """

    model_type = "elm"

    def __init__(
        self,
        *,
        vocab_size: int = 30522,
        hidden_size: int = 528,
        num_hidden_layers: int | None = None,
        embedding_size: int = 128,
        bottleneck_size: int = 132,
        max_position_embeddings: int = 512,
        type_vocab_size: int = 2,
        is_causal: bool = False,
        layers: Sequence[Mapping[str, Any]] | None = None,
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        layer_norm_eps: float = 1e-12,
        initializer_range: float = 0.02,
        classifier_dropout: float | None = None,
        classifier_pooling: Literal["cls", "mean", "last"] | None = None,
        sentence_embedding_size: int | None = None,
        normalize_embeddings: bool = True,
        pad_token_id: int | None = 0,
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ):
        self.vocab_size = _positive("vocab_size", vocab_size)
        self.hidden_size = _positive("hidden_size", hidden_size)
        self.embedding_size = _positive("embedding_size", embedding_size)
        self.bottleneck_size = _positive("bottleneck_size", bottleneck_size)
        self.max_position_embeddings = _positive("max_position_embeddings", max_position_embeddings)
        self.type_vocab_size = _positive("type_vocab_size", type_vocab_size)
        self.is_causal = is_causal
        if layers is None:
            layers = _default_layers(hidden_size, 12 if num_hidden_layers is None else num_hidden_layers)
        self.layers = [_checked_layer(index, layer) for index, layer in enumerate(layers)]
        if not self.layers:
            raise ValueError("layers is empty; give at least one layer")
        if num_hidden_layers not in (None, len(self.layers)):
            raise ValueError(f"num_hidden_layers is {num_hidden_layers}, but layers has {len(self.layers)} entries")
        self.num_hidden_layers = len(self.layers)
        self.hidden_dropout_prob = _probability("hidden_dropout_prob", hidden_dropout_prob)
        self.attention_probs_dropout_prob = _probability("attention_probs_dropout_prob", attention_probs_dropout_prob)
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        if classifier_dropout is not None:
            _probability("classifier_dropout", classifier_dropout)
        self.classifier_dropout = classifier_dropout
        pooling = classifier_pooling or ("last" if is_causal else "cls")
        if pooling not in _POOLINGS:
            raise ValueError(f"classifier_pooling is {pooling!r}; allowed: {', '.join(_POOLINGS)}")
        self.classifier_pooling = pooling
        if sentence_embedding_size is not None:
            sentence_embedding_size = _positive("sentence_embedding_size", sentence_embedding_size)
        self.sentence_embedding_size = sentence_embedding_size
        self.normalize_embeddings = normalize_embeddings
        self.pad_token_id = pad_token_id
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.tie_word_embeddings = tie_word_embeddings
        super().__init__(**kwargs)

    def __eq__(self, other: object) -> bool:
        # The inherited comparison sees only the fields that all transformers configurations have.
        return isinstance(other, ElmConfig) and self._settings() == other._settings()

    def _settings(self) -> dict[str, Any]:
        return {key: value for key, value in self.to_dict().items() if key not in _BOOKKEEPING}

    __hash__ = None  # type: ignore[assignment]

    @property
    def architecture(self) -> dict[str, str | int]:
        """The architecture as one flat dict, keys sorted: the canonical form, without shared sizes."""
        sample: dict[str, str | int] = {}
        for index, layer in enumerate(self.layers):
            sample[f"layer{index}"] = layer["block"]
            for field, label in _LABELS.items():
                sample[f"layer{index}_{layer['block']}_{label}"] = layer[field]
        return dict(sorted(sample.items()))

    @classmethod
    def from_architecture(cls, sample: Mapping[str, Any], **settings: Any) -> "ElmConfig":
        """Build a configuration from a flat architecture.

        Labels of candidates that were not chosen are passed over.

        Args:
            sample: ``{"layer0": "bert", "layer0_bert_ffn": 132, "layer0_bert_heads": 12, "layer0_bert_head_dim": 44}``
                and so on for each layer.
            **settings: Any other argument of ``ElmConfig``, such as ``hidden_size``.

        Raises:
            ValueError: A layer or one of its labels is missing, or a label belongs to no layer or block.

        Example:
            >>> sample = {"layer0": "bert", "layer0_bert_ffn": 8, "layer0_bert_heads": 2, "layer0_bert_head_dim": 4}
            >>> ElmConfig.from_architecture(sample, hidden_size=8).num_hidden_layers
            1
        """
        num_layers = 0
        while f"layer{num_layers}" in sample:
            num_layers += 1
        if not num_layers:
            raise ValueError("the architecture has no 'layer0'; its keys are layer0, layer0_<block>_ffn, ...")
        known = {f"layer{i}" for i in range(num_layers)}
        known |= {f"layer{i}_{b}_{label}" for i in range(num_layers) for b in BLOCKS for label in _LABELS.values()}
        if unknown := sorted(set(sample) - known):
            raise ValueError(
                f"the architecture has a key {unknown[0]!r} that belongs to none of its {num_layers} layers and "
                f"{len(BLOCKS)} blocks"
            )
        return cls(layers=[_layer_of(sample, index) for index in range(num_layers)], **settings)


def _layer_of(sample: Mapping[str, Any], index: int) -> dict[str, Any]:
    block = sample[f"layer{index}"]
    layer: dict[str, Any] = {"block": block}
    _checked_block(f"layer{index}", block)
    for field, label in _LABELS.items():
        key = f"layer{index}_{block}_{label}"
        if key not in sample:
            raise ValueError(f"the architecture has no {key!r}, which its layer{index} = {block!r} needs")
        layer[field] = sample[key]
    return layer


def _default_layers(hidden_size: int, num_layers: int) -> list[dict[str, Any]]:
    head_dim = max(1, hidden_size // 12)
    _positive("num_hidden_layers", num_layers)
    return [{"block": "bert", "ffn_size": 132, "num_heads": 12, "head_dim": head_dim} for _ in range(num_layers)]


def _checked_layer(index: int, layer: Mapping[str, Any]) -> dict[str, Any]:
    if set(layer) != set(LAYER_FIELDS):
        raise ValueError(f"layers[{index}] has the keys {sorted(layer)}; it needs exactly {', '.join(LAYER_FIELDS)}")
    _checked_block(f"layers[{index}]['block']", layer["block"])
    sizes = {field: _positive(f"layers[{index}][{field!r}]", layer[field]) for field in LAYER_FIELDS[1:]}
    return {"block": layer["block"], **sizes}


def _checked_block(name: str, block: object) -> None:
    if block not in BLOCKS:
        raise ValueError(f"{name} is {block!r}; allowed: {', '.join(BLOCKS)}")


def _positive(name: str, value: Any) -> int:
    try:
        # NumPy's integers pass, floats and strings do not.
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; it must be a positive integer")
    return number


def _probability(name: str, value: float) -> float:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is {value!r}; it must lie in [0, 1]")
    return value


__all__ = ["ElmConfig"]
