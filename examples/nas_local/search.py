"""Search a trained supernet with NNI's own experiment: every candidate is a trial, shown in the web UI.

    elm-nni run nano                                         # once: trains the supernet, among other things
    python examples/nas_local/search.py runs/nano            # http://127.0.0.1:8080

A trial is a process of its own. It freezes one architecture, takes the supernet's weights from the run directory and
scores the search rows of the task, so nothing is trained. Stop it or kill it and start it again: finished trials are
not run again. For your own project change the limit, the strategy, or the evaluator, whose arguments travel to the
trial: keep them strings and numbers.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict
from pathlib import Path

from nni.nas.experiment import NasExperimentConfig

from elm_nni.cache import default_store
from elm_nni.compat import ResumableNasExperiment
from elm_nni.cost import count_parameters
from elm_nni.pipeline.config import load_config
from elm_nni.pipeline.context import Context, task_spec
from elm_nni.pipeline.store import StageStore
from elm_nni.pipeline.supernet_stage import load_widths
from elm_nni.search_spaces import ElmSpace, architecture_digest
from elm_nni.strategies import ConstrainedEvolution, Limit, SupernetFitness

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("run_dir", type=Path, help="a run directory with a supernet")
parser.add_argument("--models", type=int, default=12, help="architectures to evaluate; more of them continue a search")
parser.add_argument("--port", type=int, default=8080)
parser.add_argument("--engine", choices=["ts", "sequential"], default="ts", help="sequential: no web UI")


def main() -> None:
    given = parser.parse_args()
    supernet = (given.run_dir / "supernet_tasks").resolve()
    if not supernet.is_dir():
        parser.error(f"{given.run_dir} has no supernet: elm-nni supernet {given.run_dir}")
    config = load_config(str(given.run_dir / "config.yaml"))
    settings = Context(config, StageStore(default_store()), lambda event, **values: None).settings
    max_params = config.limits.max_params or math.inf

    space = ElmSpace(**asdict(settings))
    # the widths that the growth reached are not searched
    widths = {f"{cell}_ffn": width for cell, width in load_widths(supernet).items()}
    strategy = ConstrainedEvolution(
        limits={"params": Limit(lambda sample: count_parameters(sample, settings), max_params)}, fixed=widths,
        population=4, generations=1000, mutations=2, crossovers=2, keep=4, seed=config.seed,
    )  # fmt: skip
    # a file of your own needs the columns text and label, and its task the file's name
    task = config.tasks[0]
    fitness = SupernetFitness(
        str(supernet), task.source or task.name, tokenizer=config.teacher.name, rows=config.search.validation_size,
        max_length=task_spec(task).max_length, seed=config.seed,
    )  # fmt: skip
    experiment = NasExperimentConfig(given.engine, "simplified", "local")
    experiment.max_trial_number = given.models
    experiment.trial_concurrency = 1

    search = ResumableNasExperiment(space, fitness, strategy, experiment, folder=given.run_dir / "nas")
    search.run(given.port)
    search.stop()
    metric, best = strategy.best
    print(f"{len(list(strategy.list_models()))} architectures in {given.run_dir / 'nas' / 'evaluations.jsonl'}")
    print(f"best: {architecture_digest(best.sample)}, metric {metric:.4f}, {best.costs['params']:,.0f} parameters")


if __name__ == "__main__":
    main()
