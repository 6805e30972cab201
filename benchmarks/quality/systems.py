"""The systems: a name, a note, how the students of a seed come about, and what is built for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from elm_nni.cost.parameters import (
    extreme_architecture,
    full_heads,
    mean_parameters,
    parameters_outside_embeddings,
    uniform_width,
)
from elm_nni.digest import derive_seed
from elm_nni.errors import UserError
from elm_nni.modeling.modeling_elm import ElmModel
from elm_nni.pipeline.evaluate_stage import elm_system
from elm_nni.pipeline.prune_stage import PRUNED, inherited_model
from elm_nni.pipeline.runner import Architecture
from elm_nni.pipeline.search_stage import SUMMARY, make_limits, with_widths
from elm_nni.pipeline.supernet_stage import load_supernet, load_widths
from elm_nni.search_spaces.architecture import BLOCK_NAMES, canonical, cell_name, chosen_blocks, layer_label
from quality.comparison import FULL
from quality.decoders import load_decoders
from quality.encoders import load_stock
from quality.int8 import load_int8, quantised
from quality.stock import cut_teacher, fine_tuned_teacher, frozen_teacher, load_frozen, stock_bert, stock_gpt2
from quality.trial import SHARED, LeftOut, Loader, Student, Students, TracedRun, Trial

Changes = Mapping[str, Any]

RANDOM, BERT, MOBILE = "random architectures", "uniform bert", "uniform mobile"
UNIFORM = (BERT, MOBILE)
BERT_RANDOM_TABLE = "uniform bert (random token table)"
INHERITED, RANDOM_INHERITED = (f"{name} (inherited weights)" for name in (FULL, RANDOM))
# Systems of several students a seed.
DRAWN = (RANDOM, RANDOM_INHERITED)
MAX_DRAWS = 2_000


@dataclass(frozen=True)
class System:
    """One way to a model.

    Attributes:
        name: of the rows of the tables.
        note: how it differs, in words.
        students: trains, or finds trained, what it has for a seed; raises :class:`LeftOut` where it has nothing of the
            right size.
        builds: stages for one seed that no system before it has built, for the estimate: ``teacher``, ``supernet``,
            ``supernet_tasks``, ``search``, ``training``, ``teacher_training``, ``cut_training``, ``int8``.
        load: name, folders by task and device to a system whose predictions and milliseconds can be measured.
        sized: it must have the size of full ELM's winner.
    """

    name: str
    note: str
    students: Students
    builds: tuple[str, ...]
    load: Loader = elm_system
    sized: bool = True


def searched(name: str, changes: Callable[[Trial], Changes], *, trained_so: bool = False) -> Students:
    """Students of the whole pipeline with changes; they hold for the training of the winner if ``trained_so``."""

    def students(trial: Trial) -> list[Student]:
        chosen, run, architecture = found_at_size(trial, changes(trial))
        trained_by = run if trained_so else None
        return [trial.train(name, architecture, found_by=run, trained_by=trained_by, facts={"changes": dict(chosen)})]

    return students


def found_at_size(trial: Trial, changes: Changes) -> tuple[Changes, TracedRun, Architecture]:
    """What a run with changes finds, brought to the size; where it cannot be, the run searches under it as a limit.

    Returns:
        The changes, with the limit where it was needed, their run, and the architecture.

    Raises:
        LeftOut: what it finds under the limit cannot be brought to the size either.
    """
    run = trial.run(changes)
    try:
        return changes, run, trial.sized(run.architecture())
    except LeftOut:
        changes = {**changes, **size_limit(trial, run)}
        run = trial.run(changes)
        return changes, run, trial.sized(run.architecture())


def inherited(name: str) -> Students:
    """The winner of full ELM, from slices of the supernet's weights."""

    def students(trial: Trial) -> list[Student]:
        found_by = trial.run()
        architecture, weights = found_by.architecture(), found_by.prune()
        run = trial.run({"retrain.init": "inherit"})
        return [trial.train(name, architecture, found_by=found_by, trained_by=run, inherited=weights)]

    return students


def uniform(name: str, block: str, changes: Changes | None = None) -> Students:
    """Equal layers of one block at full ELM's size, trained with changes."""
    return lambda trial: [
        trial.train(name, uniform_architecture(trial, block), trained_by=trial.run(changes) if changes else None)
    ]


def uniform_architecture(trial: Trial, block: str) -> Architecture:
    """Equal layers whose width, or else number, is solved for.

    Raises:
        LeftOut: the size is below one layer of width 1.
    """
    try:
        return uniform_width(block, trial.target, trial.run().context.settings)
    except UserError as error:
        raise LeftOut(str(error)) from error


def fixed_widths(trial: Trial) -> Changes:
    """No growth: every cell has the largest width at which the mean architecture is no larger than the grown one."""
    run = trial.run()
    settings, widths = run.context.settings, load_widths(run.supernet().folder)
    most = mean_parameters(widths, settings)
    fitting = [
        width
        for width in range(settings.ffn_start, settings.ffn_max + 1)
        if mean_parameters(dict.fromkeys(widths, width), settings) <= most
    ]
    return {"growth.enabled": False, "space.ffn_start": max(fitting), "space.ffn_max": max(fitting)}


def all_heads(trial: Trial) -> Changes:
    """No head step: the search looks for what has the size with all of its heads."""
    return {"prune.mode": "off", **size_limit(trial, trial.run())}


def size_limit(trial: Trial, run: TracedRun) -> Changes:
    """The size as a limit of a run's search.

    Where every architecture of its supernet is larger, the smallest is allowed; its widths are narrowed afterwards.
    """
    settings, widths = run.context.settings, load_widths(run.supernet().folder)
    smallest = parameters_outside_embeddings(extreme_architecture(settings, widths), settings)
    return {"limits.max_params_outside_embeddings": max(trial.target, smallest)}


def random_search(trial: Trial) -> Changes:
    """As many evaluations as the evolution had."""
    # every draw would be a line
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    summary = json.loads((trial.run().search().folder / SUMMARY).read_text(encoding="utf-8"))
    return {"search.strategy": "optuna:random", "search.evaluations": summary["evaluated"]}


def random_students(trial: Trial) -> list[Student]:
    """Architectures drawn under the limits and brought to the size."""
    return [
        trial.train(f"{RANDOM} {index}", architecture, facts={"drawn": drawn})
        for index, (architecture, drawn) in enumerate(random_architectures(trial))
    ]


def random_architectures(trial: Trial) -> list[tuple[Architecture, int]]:
    """Distinct architectures of the right size, each with the number of draws up to it.

    Block and width of every layer are drawn uniformly; what is over a limit or cannot be brought to the size is drawn
    again.

    Raises:
        LeftOut: too few were found in so many draws.
    """
    settings = trial.run().context.settings
    rng = np.random.default_rng(derive_seed(trial.seed, RANDOM))

    def draw() -> Architecture:
        sample: dict[str, Any] = {}
        for index in range(settings.num_layers):
            block = str(rng.choice(BLOCK_NAMES))
            sample |= {layer_label(index): block, f"{cell_name(index, block)}_ffn": int(rng.choice(settings.widths))}
        return canonical(sample, full_heads(settings))

    return _drawn(trial, draw, trial.sized)


def _drawn(
    trial: Trial, draw: Callable[[], Architecture], sized: Callable[[Architecture], Architecture]
) -> list[tuple[Architecture, int]]:
    run = trial.run()
    limits = make_limits(run.context, run.latency(), run.config.limits)
    found: list[tuple[Architecture, int]] = []
    for number in range(1, MAX_DRAWS + 1):
        architecture = draw()
        if any(limit.measure(architecture) > limit.maximum for limit in limits.values()):
            continue
        try:
            matched = sized(architecture)
        except LeftOut:
            continue
        if matched not in [one for one, _ in found]:
            found.append((matched, number))
        if len(found) == trial.comparison.random_architectures:
            return found
    raise LeftOut(f"{MAX_DRAWS:,} draws gave {len(found)} architectures under the limits and of the size")


def random_inherited(trial: Trial) -> list[Student]:
    """Blocks drawn uniformly, under the limits, at the supernet's widths or narrower ones that give the size."""
    run, trained_by = trial.run(), trial.run({"retrain.init": "inherit"})
    context, supernet = run.context, run.supernet_tasks()
    settings, widths = context.settings, load_widths(run.supernet().folder)
    rng = np.random.default_rng(derive_seed(trial.seed, RANDOM_INHERITED))

    def widest(blocks: Mapping[str, Any]) -> Architecture:
        return canonical(with_widths(dict(blocks), widths), full_heads(settings))

    def draw() -> Architecture:
        return widest({layer_label(index): str(rng.choice(BLOCK_NAMES)) for index in range(settings.num_layers)})

    def sized(architecture: Architecture) -> Architecture:
        narrow = trial.sized(architecture)
        if any(narrow[key] > architecture[key] for key in architecture if key.endswith("_ffn")):
            raise LeftOut("the supernet is narrower")
        return narrow

    students = []
    for index, (architecture, number) in enumerate(_drawn(trial, draw, sized)):
        name = f"{RANDOM_INHERITED} {index}"
        blocks = {layer_label(layer): block for layer, block in enumerate(chosen_blocks(architecture))}
        inputs = {"supernet": supernet.digest, "architecture": architecture}
        save = partial(_save_slices, run, supernet.folder, widest(blocks), architecture)
        weights = run.stage("slices", inputs, save, f"{name} slices")
        student = trial.train(name, architecture, trained_by=trained_by, inherited=weights, facts={"drawn": number})
        spent = {label: run.stages[label] for label in ("latency", "supernet", "supernet_tasks")}
        students.append(replace(student, stages={**student.stages, **spent}))
    return students


def _save_slices(
    run: TracedRun, supernet: Path, wide: Architecture, architecture: Architecture, folder: Path
) -> None:
    """The supernet's model of wide widths, cut to an architecture: the first rows and columns of its weights."""
    space = load_supernet(run.context, supernet)
    weights = inherited_model(space, wide).state_dict()
    model = ElmModel(space.architecture_config(architecture))
    model.load_state_dict(
        {key: weights[key][tuple(map(slice, value.shape))] for key, value in model.state_dict().items()}
    )
    model.save_pretrained(folder / PRUNED)


def elms_compute(name: str) -> Students:
    """Uniform bert with so many steps that its training takes what supernet, search and training of ELM took."""

    def students(trial: Trial) -> list[Student]:
        [elm], [plain] = SYSTEMS[FULL].students(trial), SYSTEMS[BERT].students(trial)
        seconds = elm.seconds - sum(elm.stages[label].seconds for label in SHARED)
        factor = seconds / plain.training_seconds
        retrain = trial.run().config.retrain
        changes = {
            "retrain.pretrain.steps": round(factor * retrain.pretrain.steps),
            "retrain.finetune.steps": round(factor * retrain.finetune.steps),
        }
        facts = {"factor": factor, "changes": changes}
        return [trial.train(name, uniform_architecture(trial, "bert"), trained_by=trial.run(changes), facts=facts)]

    return students


def _int8(name: str, load: Loader) -> Students:
    return quantised(lambda trial: SYSTEMS[name].students(trial), load)


_SUPERNET = ("supernet", "supernet_tasks", "search", "training")
COMPUTE = "uniform bert given ELM's compute"
_NO_GROWTH, _NO_HEADS, _MSE = "no growth", "no head step", "MSE features"
_RANDOM_SEARCH, _NO_LATENCY = "random search", "no latency limit"
_STOCK, _GPT2, _TEACHER = "stock BertConfig", "stock GPT2Config", "fine-tuned teacher"
_CUT, _CUT_SVD = "cut teacher", "cut teacher (SVD table)"
_IN_INT8 = "weights in 8 bits, in onnxruntime"

SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        System(FULL, "growth, evolution under the limits, head step", searched(FULL, lambda trial: {}),
               ("teacher", *_SUPERNET)),
        System(INHERITED, "the same architecture; its training starts from slices of the supernet's weights",
               inherited(INHERITED), ("training",)),
        System(_NO_GROWTH, "every cell at the width at which the mean architecture is as large as the grown one",
               searched(_NO_GROWTH, fixed_widths), _SUPERNET),
        System(_NO_HEADS, "the evolution looks for what has the size with all heads", searched(_NO_HEADS, all_heads),
               ("search", "training")),
        System(_MSE, "mean squared error instead of the relational loss on features, in supernet and training",
               searched(_MSE, lambda trial: {"distillation.features": "mse"}, trained_so=True), _SUPERNET),
        System(RANDOM, "blocks and widths drawn uniformly under the limits", random_students, ("training",)),
        System(RANDOM_INHERITED, "blocks drawn uniformly under the limits, at the widths of full ELM's supernet "
               "or narrower ones that give the size; their training starts from slices of its weights",
               random_inherited, ("training",)),
        System(_RANDOM_SEARCH, "the same supernet and as many evaluations as the evolution",
               searched(_RANDOM_SEARCH, random_search), ("search", "training")),
        System(BERT, "equal bert layers, no search", uniform(BERT, "bert"), ("training",)),
        System(BERT_RANDOM_TABLE, "the same without the teacher's token table as a start",
               uniform(BERT_RANDOM_TABLE, "bert", {"distillation.token_table": "random"}), ("training",)),
        System(MOBILE, "equal mobile layers, no search", uniform(MOBILE, "mobile"), ("training",)),
        System(COMPUTE, "steps of both phases times the seconds of ELM's supernet, search, head step and training "
               "over those of uniform bert's training", elms_compute(COMPUTE), _SUPERNET),
        System(_NO_LATENCY, "evolution on the same supernet without latency limit",
               searched(_NO_LATENCY, lambda trial: {"limits.max_latency_ms": None}), ("search", "training")),
        System(_STOCK, "BERT of transformers of the space's width and heads, with a random token table; the mean of "
               "its tokens is pooled",
               stock_bert, ("training",), load_stock),
        System(_GPT2, "GPT-2 of transformers of the space's width and heads, for causal spaces", stock_gpt2,
               ("training",), load_decoders),
        System("teacher", "as it is: its vectors, its own head for the next token, or a linear head on its features",
               frozen_teacher, (), load_frozen, sized=False),
        System(_TEACHER, "all weights of the teacher trained on the labels", fine_tuned_teacher, ("teacher_training",),
               load_stock, sized=False),
        System(_CUT, "the teacher's first layers, as many as come nearest to the milliseconds of full ELM's winner, "
               "fine-tuned", partial(cut_teacher, low_rank=False), ("cut_training",), load_stock, sized=False),
        System(_CUT_SVD, "the same with the token table in the rank of ours, by truncated SVD",
               partial(cut_teacher, low_rank=True), ("cut_training",), load_stock, sized=False),
        System(f"{FULL} (int8)", _IN_INT8, _int8(FULL, elm_system), ("int8",), load_int8, sized=False),
        System(f"{_TEACHER} (int8)", _IN_INT8, _int8(_TEACHER, load_stock), ("int8",), load_int8, sized=False),
        System(f"{_CUT} (int8)", _IN_INT8, _int8(_CUT, load_stock), ("int8",), load_int8, sized=False),
        System("cut teacher (SVD table, int8)", _IN_INT8, _int8(_CUT_SVD, load_stock), ("int8",), load_int8,
               sized=False),
    )
}  # fmt: skip
