"""The CKA step on the winner of the search."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from elm_nni.distillation.student import inputs_of
from elm_nni.modeling.modeling_elm import ElmModel
from elm_nni.pipeline.context import Context
from elm_nni.pipeline.search_stage import winner
from elm_nni.pipeline.store import write_json
from elm_nni.pipeline.supernet_stage import load_supernet
from elm_nni.search_spaces.space import ElmSpace
from elm_nni.strategies.head_pruning import CkaHeadPruner
from elm_nni.strategies.one_shot import set_path

PRUNED = "pruned"


def prune_inputs(context: Context, search: str) -> dict[str, Any]:
    """What the pruned architecture depends on."""
    return {"search": search, "prune": asdict(context.config.prune)}


def build_prune(context: Context, folder: Path, supernet: Path, search: Path) -> None:
    """CKA between the heads of the winner, measured with the supernet's weights on the tasks' training rows."""
    settings = context.config.prune
    model = inherited_model(load_supernet(context, supernet), winner(search)).to(context.device).eval()
    if settings.mode == "off":
        model.save_pretrained(folder / PRUNED)
        write_json(folder / "architecture.json", model.config.architecture)
        return
    pruner = CkaHeadPruner(eta=settings.eta, mode=settings.mode, min_heads=settings.min_heads, samples=settings.samples)
    plan = pruner.plan(model, _sentences(context))
    pruned = pruner.apply(model, plan)
    plan = pruner.cka_after(plan, pruned, _sentences(context))
    plan.save(folder)
    pruned.save_pretrained(folder / PRUNED)
    write_json(folder / "architecture.json", plan.architecture)
    context.log("prune", heads_before=[x.before for x in plan.layers], heads_after=[x.after for x in plan.layers])


def pruned_architecture(folder: Path) -> dict[str, Any]:
    """The canonical architecture after the head step."""
    return json.loads((folder / "architecture.json").read_text(encoding="utf-8"))


def _sentences(context: Context) -> Iterator[dict[str, Any]]:
    left = context.config.prune.sequences
    for task in context.tasks.values():
        rows = range(min(left, len(task.train)))
        for start in range(0, len(rows), 64):
            batch = task.train.batch(list(rows[start : start + 64]))
            yield inputs_of(batch)
        left -= len(rows)


def inherited_model(space: ElmSpace, architecture: dict[str, Any]) -> ElmModel:
    """The plain model of an architecture of the space with the supernet's weights."""
    set_path(space, architecture)
    model = ElmModel(space.architecture_config(architecture))
    model.load_state_dict(space.freeze(architecture).state_dict(), strict=True)
    return model
