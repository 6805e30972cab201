"""How alike the candidate blocks of a layer are, on supernets distilled with the relational and with the MSE loss.

Run: python benchmarks/diversity.py nano --out diversity

Hidden states that reach a layer along a uniformly drawn path go through all of its candidates; the cosine similarity of
their outputs, the residual included, is averaged over the tokens of held-out text (arXiv 2510.27037, figure 6). Each
path is kept in diversity.jsonl: the same command goes on after a kill, and with more paths or seeds.

Shape suffixes: B batch, T tokens, D hidden, L layers, C candidates, S seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from common import at_least, heading, run_command
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from ranking_runs import LOSSES, Runs, open_runs, supernet_estimate
from torch import Tensor, nn

from elm_nni.analysis.similarity import candidate_similarity, mean_of_pairs
from elm_nni.digest import derive_seed, digest
from elm_nni.distillation.student import inputs_of
from elm_nni.errors import UserError
from elm_nni.files import write_bytes, write_text
from elm_nni.modeling.blocks_elm import BLOCKS
from elm_nni.modeling.encoder_elm import encode
from elm_nni.pipeline.modules import on_device
from elm_nni.pipeline.runner import Run
from elm_nni.pipeline.store import StageResult, append_json_line, read_json_lines, write_json
from elm_nni.pipeline.supernet_stage import load_supernet
from elm_nni.report.style import PALE, SEQUENTIAL, Shades, new_figure, styled, text_colour, to_png
from elm_nni.search_spaces.architecture import layer_label
from elm_nni.search_spaces.space import ElmSpace
from elm_nni.strategies.one_shot import set_path

# Stage of the pipeline to what its supernet has been trained on.
PHASES = {"supernet": "text", "supernet_tasks": "text and tasks"}
BATCH_ROWS = 16

# Loss and phase to similarities (S, L, C, C).
Similarities = Mapping[tuple[str, str], NDArray[np.float64]]


class ComparedLayer(nn.Module):
    """A layer of a supernet that compares all of its candidates and passes on what the path's one gives.

    Args:
        layer: names its candidates.
        names: of the candidates, in the order of the matrix.
        chosen: the one on the path.
    """

    def __init__(self, layer: nn.Module, names: Sequence[str], chosen: str) -> None:
        super().__init__()
        self._candidates = {name: layer.get_submodule(name) for name in names}
        self._chosen = chosen
        self.mask_BT = torch.empty(0)
        self.total_CC = torch.zeros(len(names), len(names), dtype=torch.float64)

    def forward(self, hidden_BTD: Tensor, *rest: Any) -> Tensor:
        outputs = {name: block(hidden_BTD, *rest) for name, block in self._candidates.items()}
        num_tokens = int(self.mask_BT.sum())
        self.total_CC += num_tokens * candidate_similarity(list(outputs.values()), self.mask_BT).cpu()
        chosen_BTD: Tensor = outputs[self._chosen]
        return chosen_BTD


@torch.inference_mode()
def path_similarity(space: ElmSpace, path: Mapping[str, str], batches: Sequence[Mapping[str, Any]]) -> Tensor:
    """Mean cosine similarity between the candidates of each layer along a path, (L, C, C).

    Args:
        space: a supernet, in eval mode.
        path: label of each layer to its block.
        batches: ``input_ids`` and ``attention_mask`` (B, T), on the supernet's device.
    """
    set_path(space, dict(path))
    names = list(space.blocks)
    layers = [ComparedLayer(layer, names, path[layer_label(index)]) for index, layer in enumerate(space.layers)]
    for batch in batches:
        for layer in layers:
            layer.mask_BT = batch["attention_mask"]
        known = inputs_of(batch)
        encode(
            space.embeddings, nn.ModuleList(layers), space.config, known["input_ids"], known["attention_mask"],
            document_ids_BT=known.get("document_ids"),
        )  # fmt: skip
    num_tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    return torch.stack([layer.total_CC for layer in layers]) / num_tokens


def draw_paths(seed: int, number: int, blocks: Sequence[str], num_layers: int) -> list[dict[str, str]]:
    """Uniformly drawn paths, the first ones the same for any number."""
    rng = np.random.default_rng(derive_seed(seed, "diversity/paths"))
    return [
        {layer_label(index): blocks[int(rng.integers(len(blocks)))] for index in range(num_layers)}
        for _ in range(number)
    ]


class PathLines:
    """Similarities by supernet, rows and path, in a file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = {line["digest"]: line["similarity"] for line in read_json_lines(path)}

    def measure(self, run: Run, supernet: StageResult, paths: Sequence[Mapping[str, str]], rows: int) -> Tensor:
        """Mean over paths (L, C, C); what the file holds is not measured again."""
        names = [digest([supernet.name, supernet.digest, rows, path]) for path in paths]
        missing = {name: path for name, path in zip(names, paths) if name not in self._known}
        if missing:
            space = load_supernet(run.context, supernet.folder).to(run.context.device).eval()
            batches = text_of(run, rows)
            for name, path in missing.items():
                similarity = path_similarity(space, path, batches).tolist()
                line = {"stage": supernet.name, "supernet": supernet.digest, "rows": rows, "path": path}
                append_json_line(self._path, {**line, "digest": name, "similarity": similarity})
                self._known[name] = similarity
        return torch.tensor([self._known[name] for name in names], dtype=torch.float64).mean(dim=0)


def text_of(run: Run, rows: int) -> list[dict[str, Any]]:
    """The first rows of the held-out text, in batches on the run's device.

    Raises:
        UserError: fewer are held out.
    """
    held_out = run.context.corpus[1]
    if rows > len(held_out):
        raise UserError(f"--rows is {rows}; data.holdout_rows keeps {len(held_out)} rows of text out of training")
    starts = range(0, rows, BATCH_ROWS)
    batches = [held_out.batch(list(range(start, min(start + BATCH_ROWS, rows)))) for start in starts]
    return [on_device(batch, run.context.device) for batch in batches]


def measure_all(runs: Runs, lines: PathLines, *, num_paths: int, rows: int) -> Similarities:
    """Loss and phase to similarities (S, L, C, C); supernets that are missing are trained."""
    found: dict[tuple[str, str], list[NDArray[np.float64]]] = {}
    for (seed, loss), run in runs.items():
        for phase, supernet in (("supernet", run.supernet()), ("supernet_tasks", run.supernet_tasks())):
            paths = draw_paths(seed, num_paths, list(BLOCKS), run.context.settings.num_layers)
            similarity_LCC = lines.measure(run, supernet, paths, rows).numpy()
            found.setdefault((loss, phase), []).append(similarity_LCC)
            mean = np.mean([mean_of_pairs(torch.from_numpy(one_CC)) for one_CC in similarity_LCC])
            typer.echo(f"{loss}, seed {seed}, supernet trained on {PHASES[phase]}: {mean:.4f}", err=True)
    return {key: np.stack(values) for key, values in found.items()}


def table(similarities: Similarities) -> list[str]:
    """Markdown: for each phase and loss the mean over pairs of candidates, by layer and over all of them."""
    num_layers = next(iter(similarities.values())).shape[1]
    lines = [
        f"| trained on | loss | {' | '.join(f'layer {index}' for index in range(num_layers))} | all layers |",
        f"|---|---|{'---:|' * (num_layers + 1)}",
    ]
    for phase, words in PHASES.items():
        means = {loss: pair_means(similarities[loss, phase]) for loss in LOSSES}
        lines += [f"| {words} | {loss} | {_cells(means[loss])} |" for loss in LOSSES]
        lines.append(f"| {words} | mse - relational | {_cells(means['mse'] - means['relational'], '+')} |")
    return lines


def pair_means(similarity_SLCC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over pairs of candidates (S, L)."""
    return np.array([[mean_of_pairs(torch.from_numpy(one_CC)) for one_CC in one] for one in similarity_SLCC])


def _cells(means_SL: NDArray[np.float64], sign: str = "") -> str:
    columns = [*means_SL.T, means_SL.mean(axis=1)]
    return " | ".join(_spread(column_S, sign) for column_S in columns)


def _spread(values_S: NDArray[np.float64], sign: str) -> str:
    spread = f" ± {values_S.std(ddof=1):.3f}" if len(values_S) > 1 else ""
    return f"{values_S.mean():{sign}.3f}{spread}"


@styled
def plot(similarities: Similarities) -> Figure:
    """A heat map of candidates by candidates for each phase and loss: mean over seeds and layers."""
    means = {key: similarity_SLCC.mean(axis=(0, 1)) for key, similarity_SLCC in similarities.items()}
    apart = ~np.eye(len(BLOCKS), dtype=bool)
    shades = Shades.over(np.concatenate([mean_CC[apart] for mean_CC in means.values()]))
    figure = new_figure(8.6, 8.2)
    panels = figure.subplots(len(PHASES), len(LOSSES))
    for row, (phase, words) in enumerate(PHASES.items()):
        for column, loss in enumerate(LOSSES):
            mean_CC = means[loss, phase]
            panels[row, column].set_title(f"{loss}, trained on {words}: {mean_of_pairs(torch.from_numpy(mean_CC)):.3f}")
            _heat_map(panels[row, column], np.where(apart, mean_CC, np.nan), shades)
    figure.colorbar(
        shades.mappable, ax=panels, label="mean cosine similarity", location="bottom", shrink=0.6, aspect=40, pad=0.02
    )
    return figure


def _heat_map(axes: Axes, matrix_CC: NDArray[np.float64], shades: Shades) -> None:
    axes.set_facecolor(PALE)
    axes.imshow(matrix_CC, cmap=SEQUENTIAL, norm=shades.norm, interpolation="nearest")
    axes.set_xticks(range(len(BLOCKS)), list(BLOCKS), rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(BLOCKS)), list(BLOCKS))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    colours = shades.rgba(matrix_CC)
    for (row, column), value in np.ndenumerate(matrix_CC):
        if not np.isnan(value):
            colour = text_colour(colours[row, column])
            axes.text(column, row, f"{value:.2f}", color=colour, ha="center", va="center", fontsize=8)


def document(runs: Runs, similarities: Similarities, *, num_paths: int, rows: int) -> list[str]:
    """Lines of Markdown."""
    run = next(iter(runs.values()))
    num_seeds, num_layers = len(runs) // len(LOSSES), run.context.settings.num_layers
    weight = f"weight of the feature loss there: {run.config.distillation.lambda_feature:g}"
    return [
        *heading("diversity.py", run),
        "",
        f"- Mean cosine similarity between the outputs of a layer's {len(BLOCKS)} candidates for the same hidden "
        "states, over all pairs of two; 1 means that all candidates say the same. An output includes the residual, as "
        "the next layer reads it.",
        f"- Hidden states: what reaches the layer along {num_paths} uniformly drawn paths, the same for both losses, "
        f"on {rows} rows of {run.config.data.sequence_length} tokens of held-out text; padding is left out.",
        f"- Supernets: seeds {', '.join(map(str, range(num_seeds)))}; {num_layers} layers, at the widths that each "
        "of them grew to; distilled on text, and after that trained on the tasks as well "
        f"({', '.join(run.context.tasks)}; {weight})."
        + (" ± is the standard deviation over seeds." if num_seeds > 1 else ""),
        "",
        *table(similarities),
    ]


def main(
    source: Annotated[str, typer.Argument(help="A preset, a YAML file or a run directory.")],
    out: Annotated[Path, typer.Option(help="Folder of measurements, results and figure.")],
    store: Annotated[Path | None, typer.Option(help="Where stages live. Default: as elm-nni.")] = None,
    seeds: Annotated[int, typer.Option(help="Supernets of each loss.")] = 1,
    paths: Annotated[int, typer.Option(help="Drawn paths of each supernet.")] = 8,
    rows: Annotated[int, typer.Option(help="Of held-out text.")] = 64,
    plan: Annotated[bool, typer.Option("--plan", help="Print the estimate and stop.")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any key of the configuration.")] = None,
) -> None:
    """Measures how alike the candidates of trained supernets are; missing stages are trained first."""
    at_least(seeds=(seeds, 1), paths=(paths, 1), rows=(rows, 1))
    runs = open_runs(source, store, out, set_ or [], seeds=seeds)
    # refused before anything is trained
    text_of(runs[0, LOSSES[0]], rows)
    steps = list(supernet_estimate(runs))
    for line, _ in steps:
        typer.echo(line, err=not plan)
    total = sum(seconds for _, seconds in steps)
    typer.echo(f"about {total / 60:.0f} minutes of training to do, measurements not counted", err=not plan)
    if plan:
        return
    similarities = measure_all(runs, PathLines(out / "diversity.jsonl"), num_paths=paths, rows=rows)
    lines = document(runs, similarities, num_paths=paths, rows=rows)
    results = [
        {"loss": loss, "stage": phase, "blocks": list(BLOCKS), "similarity": similarity_SLCC.tolist()}
        for (loss, phase), similarity_SLCC in similarities.items()
    ]
    write_json(out / "diversity.json", {"paths": paths, "rows": rows, "results": results})
    write_text(out / "diversity.md", "\n".join(lines) + "\n")
    write_bytes(out / "diversity.png", to_png(plot(similarities)))
    typer.echo("\n".join(lines))


if __name__ == "__main__":
    run_command(main, "diversity")
