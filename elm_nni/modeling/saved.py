"""Load a saved ELM model of whatever class it is."""

from os import PathLike
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from elm_nni import modeling
from elm_nni.modeling.modeling_elm import ElmPreTrainedModel


def load_saved(folder: str | PathLike[str], **options: Any) -> ElmPreTrainedModel:
    """The model of a folder, of the class that its configuration names, in eval mode.

    Args:
        folder: Written by ``save_pretrained``.
        **options: As of ``from_pretrained``.

    Raises:
        ValueError: The folder holds no ELM model.
        OSError: There is nothing to load.

    Example:
        >>> type(load_saved("run/model")).__name__
        'ElmForSequenceClassification'
    """
    names = PreTrainedConfig.get_config_dict(folder)[0].get("architectures") or []
    kind = getattr(modeling, names[0], None) if len(names) == 1 else None
    if not (isinstance(kind, type) and issubclass(kind, ElmPreTrainedModel)):
        raise ValueError(f"{folder} holds {', '.join(names) or 'nothing'}; it must be one ELM model")
    model: ElmPreTrainedModel = kind.from_pretrained(folder, **options)
    return model


__all__ = ["load_saved"]
