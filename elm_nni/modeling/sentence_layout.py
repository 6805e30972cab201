"""The files by which sentence-transformers loads a folder: pooling, projection and norm as modules behind the model."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from .tasks_elm import ElmForSentenceEmbedding

# Our names of a pooling and those of sentence-transformers.
_POOLING_KEYS = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "last": "pooling_mode_lasttoken"}


def write_sentence_layout(model: ElmForSentenceEmbedding, folder: Path) -> None:
    """Write ``modules.json`` and a folder a module, beside the weights; the projection is there a second time.

    Texts must be padded on the right where the pooling is ``"cls"``, as tokenizers of encoders do.

    Example:
        >>> write_sentence_layout(model, Path("my-embedder"))
        >>> SentenceTransformer("my-embedder", trust_remote_code=True).encode(["a text"]).shape
        (1, 384)
    """
    config, projection = model.config, model.projection
    _write(folder / "sentence_bert_config.json", {"max_seq_length": config.max_position_embeddings})
    pooling = {key: name == config.classifier_pooling for name, key in _POOLING_KEYS.items()}
    modules = {
        "Transformer": "",
        "Pooling": _write(
            folder / "1_Pooling" / "config.json", {"word_embedding_dimension": config.hidden_size, **pooling}
        ),
    }
    if isinstance(projection, nn.Linear):
        dense = {
            "in_features": projection.in_features,
            "out_features": projection.out_features,
            "bias": True,
            "activation_function": "torch.nn.modules.linear.Identity",
        }
        modules["Dense"] = _write(folder / "2_Dense" / "config.json", dense)
        weights = {f"linear.{name}": tensor.contiguous() for name, tensor in projection.state_dict().items()}
        save_file(weights, folder / "2_Dense" / "model.safetensors", metadata={"format": "pt"})
    if config.normalize_embeddings:
        modules["Normalize"] = _write(folder / f"{len(modules)}_Normalize" / "config.json", {})
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
        for index, (name, path) in enumerate(modules.items())
    ]
    _write(folder / "modules.json", listed)


def _write(file: Path, content: Any) -> str:
    """Write JSON and return the name of the folder it lies in."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return file.parent.name


__all__ = ["write_sentence_layout"]
