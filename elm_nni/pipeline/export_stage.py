"""The model folder that a user takes away: weights, code, tokenizer, card, and ONNX files by option."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from elm_nni.errors import UserError
from elm_nni.kinds import TaskKind
from elm_nni.modeling.export import save_with_code
from elm_nni.modeling.saved import load_saved
from elm_nni.pipeline.store import write_json


def require_onnx() -> None:
    """Stops before hours of training when the packages of ONNX export are missing.

    Raises:
        UserError: with the command that installs them.
    """
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if missing:
        raise UserError(f"export.onnx needs {', '.join(missing)}: pip install \"elm-nni[onnx]\"")


def onnx_inputs(model: str, int8: bool) -> dict[str, Any]:
    """What the ONNX files depend on."""
    return {"model": model, "int8": int8}


def build_onnx(model: Path, folder: Path, *, int8: bool, pairs: bool, max_length: int) -> None:
    """Writes ``model.onnx``, by option ``model-int8.onnx``, tokenizer and ``infer.py``; checks them against PyTorch."""
    # the onnx packages are an extra
    from elm_nni.export.onnx import export_onnx

    # a tokenizer may give the parts of a pair no types, and then the model has not seen any
    types = pairs and "token_type_ids" in AutoTokenizer.from_pretrained(model).model_input_names
    report = export_onnx(model, folder, int8=int8, token_types=types, max_length=max_length)
    write_json(folder / "onnx.json", asdict(report))


def export_model(
    target: Path, models: dict[str, Path], kinds: dict[str, TaskKind], onnx: dict[str, Path],
    results: dict[str, Any] | None,
) -> Path:  # fmt: skip
    """Writes the folder of one task to ``target``, or of several to ``target/<task>``; existing ones are replaced.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        for name, source in models.items():
            place = target if len(models) == 1 else target / name
            partial = target.parent / f".{target.name}-{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            save_with_code(load_saved(source), partial)
            AutoTokenizer.from_pretrained(source).save_pretrained(partial)
            (partial / "README.md").write_text(model_card(name, kinds[name], results), encoding="utf-8")
            if name in onnx:
                shutil.copytree(onnx[name], partial / "onnx", ignore=shutil.ignore_patterns("stage.json", "*.lock"))
            shutil.rmtree(place, ignore_errors=True)
            place.parent.mkdir(parents=True, exist_ok=True)
            partial.rename(place)
    except OSError as error:
        raise UserError(f"cannot write {error.filename or target}: {error.strerror or error}") from error
    return target


def model_card(task: str, kind: TaskKind, results: dict[str, Any] | None) -> str:
    """The folder's README: what it is, how to load it, what it scored and under which condition."""
    lines = [
        "---", "library_name: transformers", f"pipeline_tag: {kind.pipeline_tag}", "---", "",
        f"# ELM model for {task}", "",
        "Found by elastic architecture search (ELM, arXiv 2510.27037) with elm_nni.", "",
        "```python", f"from transformers import {kind.auto_class}, AutoTokenizer", "",
        f'model = {kind.auto_class}.from_pretrained("PATH", trust_remote_code=True)',
        'tokenizer = AutoTokenizer.from_pretrained("PATH", trust_remote_code=True)', "```", "",
        "`trust_remote_code` runs the model's own code files beside these weights; where elm_nni is installed and",
        "imported (`import elm_nni.modeling`), it is not needed.",
    ]  # fmt: skip
    if results is not None:
        found, latency = results["tasks"][task], results["latency_ms"]
        lines += [
            "", "| what | value |", "|---|---|", f"| architecture | `{results['digest']}` |",
            f"| parameters | {results['params']:,} ({results['params_outside_embeddings']:,} outside the embeddings) |",
            *(
                f"| {metric}, {found['split']} split, n = {found['n']} | {value:.4f} |"
                for metric, value in found["metrics"].items()
            ),
            f"| latency, {latency['condition']} | "
            + ("not measured |" if latency["measured"] is None else f"{latency['measured']:.2f} ms |"),
            f"| seed | {results['seed']} |",
        ]  # fmt: skip
    return "\n".join(lines) + "\n"
