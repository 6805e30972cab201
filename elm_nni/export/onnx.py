"""ONNX files of trained models, checked against PyTorch, beside an inference script that needs no torch.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig

from elm_nni import modeling
from elm_nni.cost.onnx_graph import PACKAGES, open_session, quantize_graph, require, write_graph
from elm_nni.cost.timing import median_iqr, time_rounds, watch
from elm_nni.errors import UserError
from elm_nni.export.scripts import TOKENIZER_FILE, write_script
from elm_nni.modeling.saved import load_saved

logger = logging.getLogger(__name__)

MODEL_FILE, INT8_FILE = "model.onnx", "model-int8.onnx"
# Architectures that can be exported, and the names of their outputs. Generation needs a cache, which no graph here has.
OUTPUTS = {
    "ElmForSequenceClassification": ("logits",),
    "ElmForTokenClassification": ("logits",),
    "ElmForQuestionAnswering": ("start_logits", "end_logits"),
    "ElmForSentenceEmbedding": ("sentence_embeddings",),
    "ElmForMaskedLM": ("logits",),
    "ElmModel": ("last_hidden_state",),
}
# Batch and length of the inputs that the files are checked with; those longer than the model allows are cut.
CHECKED_SHAPES = ((1, 1), (1, 7), (3, 16), (2, 128))


@dataclass(frozen=True)
class OnnxReport:
    """What was written, and how far it is from PyTorch: largest absolute difference of any output, and sizes in bytes.

    ``script`` is None for a bare encoder or without a tokenizer; the int8 fields are None unless asked for.
    """

    path: Path
    size_bytes: int
    difference: float
    int8_path: Path | None = None
    int8_size_bytes: int | None = None
    int8_difference: float | None = None
    script: Path | None = None


def export_onnx(
    model_folder: str | Path,
    output: str | Path,
    *,
    int8: bool = False,
    token_types: bool = False,
    max_length: int | None = None,
    tolerance: float = 1e-4,
) -> OnnxReport:
    """Write ``model.onnx`` (batch and length free) and compare it with PyTorch in onnxruntime on several shapes.

    With a tokenizer in the folder, a model of a task gets ``infer.py`` and ``tokenizer.json`` beside it; the script
    takes the int8 file if one was asked for. Rows of several documents are not for these files: they have no
    ``document_ids``.

    Args:
        model_folder: Folder of a saved model of any class in ``OUTPUTS``; a causal language model is none.
        output: Folder to write; made if missing, files of the same names are replaced.
        int8: Also write ``model-int8.onnx``: weights and token table in int8, activations quantised as they come.
        token_types: The model also reads ``token_type_ids``, for pairs of texts.
        max_length: Tokens that the script cuts texts at, or the windows of a context have. None: all that fit.
        tolerance: Largest difference from PyTorch that is accepted of ``model.onnx``, relative to the largest output
            where that is above one. The int8 file's difference is only reported.

    Raises:
        UserError: Missing packages (with the command that installs them), a folder that holds no such model, an output
            that cannot be written, or a difference above ``tolerance``.

    Example:
        >>> export_onnx("run/model", "run/model/onnx", int8=True).difference < 1e-4
        True
    """
    for name in PACKAGES:
        require(name)
    source, target = Path(model_folder), Path(output)
    model = _load(source)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target) as scratch:
            # Under its final name only once it was found right.
            draft = Path(scratch) / MODEL_FILE
            _write(model, draft, token_types)
            difference, scale = _compare(model, draft, token_types)
            if not difference <= tolerance * max(1.0, scale):
                raise UserError(
                    f"{source}: its ONNX file differs from PyTorch by {difference:.2g}; allowed: {tolerance:g}"
                )
            int8_difference = None
            if int8:
                quantize_graph(draft, Path(scratch) / INT8_FILE)
                int8_difference, _ = _compare(model, Path(scratch) / INT8_FILE, token_types)
                (Path(scratch) / INT8_FILE).replace(target / INT8_FILE)
            draft.replace(target / MODEL_FILE)
        script = _write_script(source, target, model, INT8_FILE if int8 else MODEL_FILE, max_length)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error
    logger.info("wrote %s; largest difference from PyTorch %.2g", target / MODEL_FILE, difference)
    return OnnxReport(
        path=target / MODEL_FILE,
        size_bytes=(target / MODEL_FILE).stat().st_size,
        difference=difference,
        int8_path=target / INT8_FILE if int8 else None,
        int8_size_bytes=(target / INT8_FILE).stat().st_size if int8 else None,
        int8_difference=int8_difference,
        script=script,
    )


def measure_onnx(
    path: str | Path,
    *,
    batch_size: int = 1,
    sequence_length: int = 128,
    threads: int = 1,
    repeats: int = 30,
    seed: int = 0,
) -> tuple[float, float]:
    """Latency of a file that :func:`export_onnx` wrote, on the CPU in onnxruntime.

    Args:
        path: The file.
        batch_size: Sequences at once.
        sequence_length: Tokens of each, all valid.
        threads: Threads of one operator.
        repeats: Timed runs.
        seed: Of the token ids.

    Returns:
        Median and interquartile range in ms.

    Raises:
        UserError: Missing packages, a number below one, a file of another origin, or too long a sequence.

    Example:
        >>> median_ms, iqr_ms = measure_onnx("run/model/onnx/model.onnx", sequence_length=64)
    """
    sizes = {"batch_size": batch_size, "sequence_length": sequence_length, "threads": threads, "repeats": repeats}
    for name, value in sizes.items():
        if value < 1:
            raise UserError(f"{name} is {value!r}; it must be at least 1")
    session = open_session(Path(path), threads)
    metadata = session.get_modelmeta().custom_metadata_map
    if "vocab_size" not in metadata:
        raise UserError(f"{path} was not written by export_onnx: it does not say its vocab_size")
    if sequence_length > int(metadata["max_length"]):
        raise UserError(f"sequence_length is {sequence_length}; {path} takes at most {metadata['max_length']}")
    rng = np.random.default_rng(seed)
    ids_BT = rng.integers(int(metadata["vocab_size"]), size=(batch_size, sequence_length))
    values = {"input_ids": ids_BT, "attention_mask": np.ones_like(ids_BT), "token_type_ids": np.zeros_like(ids_BT)}
    inputs = {item.name: values[item.name] for item in session.get_inputs()}
    calls = {"onnx": lambda: session.run(None, inputs)}
    return median_iqr(time_rounds(calls, repeats=repeats, seed=seed, watched=watch(threads=threads)).times_ms["onnx"])


class _Positional(nn.Module):
    """The model with tensors in and its named outputs out, which is what an ONNX graph is."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.outputs = model, OUTPUTS[type(model).__name__]

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return tuple(found[name] for name in self.outputs)


def _load(folder: Path) -> modeling.ElmPreTrainedModel:
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no model folder: it has no config.json")
    try:
        config = AutoConfig.from_pretrained(folder)
        name = (config.architectures or ["nothing"])[0]
        if name not in OUTPUTS:
            raise UserError(
                f"{folder} holds {name}; only {', '.join(OUTPUTS)} are exported to ONNX, and no model that generates, "
                "since the files have no cache"
            )
        model = load_saved(folder, dtype=torch.float32)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load {folder}: {' '.join(str(error).split())}") from error
    return model.eval()


def _write(model: modeling.ElmPreTrainedModel, path: Path, token_types: bool) -> None:
    inputs = _inputs(model, 2, min(9, model.config.max_position_embeddings), token_types)
    axes = {name: {0: "batch", 1: "length"} for name in inputs}
    proto = write_graph(_Positional(model).eval(), inputs, axes, OUTPUTS[type(model).__name__], path)
    config = model.config
    labels = [config.id2label[index] for index in range(config.num_labels)]
    facts = {"labels": labels, "vocab_size": config.vocab_size, "max_length": config.max_position_embeddings}
    onnx = require("onnx")
    onnx.helper.set_model_props(proto, {key: json.dumps(value) for key, value in facts.items()})
    onnx.save(proto, path)


def _compare(model: modeling.ElmPreTrainedModel, path: Path, token_types: bool) -> tuple[float, float]:
    """Largest difference from PyTorch over ``CHECKED_SHAPES``, and the largest output; NaN where either has one."""
    session = open_session(path, 1)
    wrapper = _Positional(model)
    differences, scales = [], []
    for batch_size, length in CHECKED_SHAPES:
        inputs = _inputs(model, batch_size, min(length, model.config.max_position_embeddings), token_types)
        with torch.inference_mode():
            expected = [value.numpy() for value in wrapper(**inputs)]
        found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        differences += [np.abs(ours - theirs).max() for ours, theirs in zip(found, expected, strict=True)]
        scales += [np.abs(value).max() for value in expected]
    return float(np.max(differences)), float(np.max(scales))


def _inputs(
    model: modeling.ElmPreTrainedModel, batch_size: int, length: int, token_types: bool
) -> dict[str, torch.Tensor]:
    """Random token ids; every row but the first is padded on the right, the last one half."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, length)
    valid_B1 = torch.linspace(length, max(length // 2, 1), batch_size).long()[:, None]
    inputs = {
        "input_ids": torch.randint(model.config.vocab_size, shape, generator=generator),
        "attention_mask": (torch.arange(length)[None] < valid_B1).long(),
    }
    if token_types:
        inputs["token_type_ids"] = torch.randint(model.config.type_vocab_size, shape, generator=generator)
    return inputs


def _write_script(
    source: Path, target: Path, model: modeling.ElmPreTrainedModel, model_file: str, max_length: int | None
) -> Path | None:
    if not (source / TOKENIZER_FILE).is_file():
        return None
    if source.resolve() != target.resolve():
        shutil.copyfile(source / TOKENIZER_FILE, target / TOKENIZER_FILE)
    longest = model.config.max_position_embeddings
    length = longest if max_length is None else min(max_length, longest)
    return write_script(source, target, type(model).__name__, model.config, model_file, length)
