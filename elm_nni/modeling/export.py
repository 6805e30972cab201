"""Save a model with its code, so that transformers alone can load the folder."""

import json
import logging
import shutil
from os import PathLike
from pathlib import Path

from . import blocks_elm
from .blocks_elm import BLOCKS
from .modeling_elm import ElmForSentenceEmbedding, ElmPreTrainedModel
from .sentence_layout import write_sentence_layout

logger = logging.getLogger(__name__)

CODE_FILES = (
    "configuration_elm.py",
    "blocks_elm.py",
    "encoder_elm.py",
    "heads_elm.py",
    "base_elm.py",
    "language_elm.py",
    "tasks_elm.py",
    "modeling_elm.py",
)
AUTO_MAP = {
    "AutoConfig": "configuration_elm.ElmConfig",
    # Or ElmForSentenceEmbedding, where the model is one: no Auto class is its own.
    "AutoModel": "modeling_elm.ElmModel",
    "AutoModelForCausalLM": "modeling_elm.ElmForCausalLM",
    "AutoModelForMaskedLM": "modeling_elm.ElmForMaskedLM",
    "AutoModelForQuestionAnswering": "modeling_elm.ElmForQuestionAnswering",
    "AutoModelForSequenceClassification": "modeling_elm.ElmForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_elm.ElmForTokenClassification",
}


def save_with_code(model: ElmPreTrainedModel, folder: str | PathLike[str]) -> None:
    """Write weights (safetensors), configuration and the code files that define the model.

    Where this package is not installed, the folder loads with ``trust_remote_code=True``. The model and its
    configuration are left as they are. Beside an ``ElmForSentenceEmbedding`` lie the files that sentence-transformers
    reads; a tokenizer must be put there for it.

    Args:
        model: Any ELM model.
        folder: Made if missing; files of the same names are replaced.

    Raises:
        ValueError: The model has a block whose code is not in this package and so could not be saved.

    Example:
        >>> save_with_code(model, "my-elm")
        >>> AutoModelForSequenceClassification.from_pretrained("my-elm", trust_remote_code=True)
    """
    for index, layer in enumerate(model.config.layers):
        block = BLOCKS[layer["block"]]
        if block.__module__ != blocks_elm.__name__:
            raise ValueError(
                f"layer {index} is {layer['block']!r} from {block.__module__}, whose code cannot be saved with the "
                "model; use save_pretrained and load where that module is installed"
            )
    target = Path(folder)
    model.save_pretrained(target)
    config_path = target / "config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["auto_map"] = AUTO_MAP
    if isinstance(model, ElmForSentenceEmbedding):
        config["auto_map"] = AUTO_MAP | {"AutoModel": "modeling_elm.ElmForSentenceEmbedding"}
        write_sentence_layout(model, target)
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for name in CODE_FILES:
        shutil.copyfile(Path(__file__).with_name(name), target / name)
    logger.info("saved the model and its code in %s", target)
