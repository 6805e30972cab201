"""What was trained, measured and scored, in JSON lines: each is made once, and a killed command goes on from them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, cpu_count, delayed, parallel_config
from transformers.utils.logging import disable_progress_bar

from elm_nni.cost.parameters import SIZE_TOLERANCE
from elm_nni.digest import digest
from elm_nni.errors import UserError
from elm_nni.pipeline.context import latency_condition
from elm_nni.pipeline.evaluate_stage import System as Loaded
from elm_nni.pipeline.store import StageStore, append_json_line, read_json_lines
from elm_nni.pipeline.student_stage import validation_scores
from elm_nni.pipeline.system_latency import measure_systems
from quality.comparison import FULL, Comparison
from quality.systems import SYSTEMS
from quality.trial import LeftOut, Student, Trial

TRAINED, MEASURED, TESTED = "trained-{seed}.jsonl", "measured.jsonl", "tested.jsonl"

Line = dict[str, Any]
Tell = Callable[[str], None]


class Records:
    """The results of a comparison in a folder.

    Lines of another comparison, another base configuration among them, stay in the files and are passed over.

    Args:
        comparison: what is compared.
        store: where stages live.
        folder: of the files.
        tell: called with a line of progress.
    """

    def __init__(self, comparison: Comparison, store: StageStore, folder: Path, tell: Tell = lambda line: None) -> None:
        self.comparison, self.store, self.folder, self.tell = comparison, store, folder, tell
        self._trials: dict[int, Trial] = {}

    def trial(self, seed: int) -> Trial:
        """The runs of a seed; those of an earlier seed are let go."""
        if seed not in self._trials:
            self._trials = {seed: Trial(self.comparison, seed, self.store, self.folder / "runs")}
        return self._trials[seed]

    def train(self, workers: int = 1) -> list[Line]:
        """A line for every system and seed: its students, or the reason why it has none.

        Args:
            workers: processes that take a seed each and share the cores.
        """
        # measured while the machine has nothing else to do; all seeds share it
        self.trial(0).run().latency()
        # loaded teachers and data would travel to the processes
        self._trials = {}
        with parallel_config("loky", n_jobs=workers, inner_max_num_threads=threads_of(workers)):
            lines = Parallel(batch_size=1)(
                delayed(_train_in)(os.getpid(), self, seed) for seed in range(self.comparison.num_seeds)
            )
        return [line for of_seed in lines for line in of_seed]

    def train_seed(self, seed: int) -> list[Line]:
        """A line for every system of a seed."""
        disable_progress_bar()
        known, names = self.trained(seed), self.comparison.names(seed)
        for number, name in enumerate(names, 1):
            if name not in known:
                line = self._train(name, self.trial(seed))
                append_json_line(self.folder / TRAINED.format(seed=seed), line)
                self.tell(f"seed {seed}, {number}/{len(names)} {name}: {_outcome(line)}")
        self._trials.pop(seed, None)
        # as a later start reads them, in the same order
        known = self.trained(seed)
        return [known[name] for name in names]

    def trained(self, seed: int) -> dict[str, Line]:
        """The lines that there are of a seed, by system."""
        lines = read_json_lines(self.folder / TRAINED.format(seed=seed))
        return {line["system"]: line for line in lines if self._is_current(line)}

    def measure(self, trained: list[Line]) -> dict[str, Line]:
        """Parameters, megabytes and milliseconds by key of a student; those of a seed are timed side by side."""
        measured: dict[str, Line] = {}
        for seed, keys in _students(trained).items():
            condition = latency_condition(self.comparison.config(seed))
            name = digest([sorted(keys), condition.describe()])
            lines = [line for line in read_json_lines(self.folder / MEASURED) if line["key"] == name]
            if not lines:
                self.tell(f"seed {seed}: {len(keys)} models are timed side by side")
                lines = [{"key": name, "seed": seed, "students": self._measure(seed, keys)}]
                append_json_line(self.folder / MEASURED, lines[0])
            measured |= lines[0]["students"]
        return measured

    def test(self, trained: list[Line]) -> dict[str, Line]:
        """Scores on the test rows by key of a student; each student reads them once."""
        tested = self._tested()
        for seed, keys in _students(trained).items():
            missing = {key: one for key, one in keys.items() if key not in tested}
            if not missing:
                continue
            context = self.trial(seed).run().context
            tasks = context.tasks
            rows = {name: context.test_rows(name) for name in tasks}
            self.tell(f"seed {seed}: {len(missing)} models are scored on the test rows")
            for key, one in missing.items():
                loaded = self._load(one, list(rows))
                metrics = {
                    name: task.scores(task.outputs(loaded.logits[name], rows[name]), rows[name])
                    for name, task in tasks.items()
                }
                main = {name: metrics[name][task.data.metric] for name, task in tasks.items()}
                counts = {name: task.kind.num_scored(rows[name]) for name, task in tasks.items()}
                line = {"key": key, "scores": main, "metrics": metrics, "rows": counts}
                append_json_line(self.folder / TESTED, line)
        return self._tested()

    def _tested(self) -> dict[str, Line]:
        return {line["key"]: line for line in read_json_lines(self.folder / TESTED)}

    def _train(self, name: str, trial: Trial) -> Line:
        line: Line = {"key": self._key(name, trial.seed), "system": name, "seed": trial.seed, "target": trial.target}
        try:
            students = SYSTEMS[name].students(trial)
        except LeftOut as reason:
            return {**line, "students": [], "reason": str(reason)}
        tasks = trial.run().context.tasks
        line["tasks"] = {
            task.name: {"metric": task.data.metric, "rows": task.kind.num_scored(task.validation)}
            for task in tasks.values()
        }
        return {**line, "students": [_student_line(name, one) for one in students]}

    def _measure(self, seed: int, keys: Mapping[str, Line]) -> Line:
        condition = latency_condition(self.comparison.config(seed))
        first = next(iter(next(iter(keys.values()))["models"]))
        loaded = {key: self._load(one, [first]) for key, one in keys.items()}
        times = measure_systems(
            {key: one.module for key, one in loaded.items() if one.module is not None},
            {key: one.file for key, one in loaded.items() if one.file is not None},
            condition, self.trial(seed).run().context.settings.vocab_size,
        )  # fmt: skip
        return {
            key: {
                "params": one.params, "params_outside_embeddings": one.params_outside_embeddings,
                "megabytes": one.megabytes, "latency_ms": times[key].median_ms, "latency_iqr_ms": times[key].iqr_ms,
                "condition": times[key].condition,
            }
            for key, one in loaded.items()
        }  # fmt: skip

    def _load(self, student: Line, tasks: list[str]) -> Loaded:
        folders = {task: self.store.root / student["models"][task] / "model" for task in tasks}
        return SYSTEMS[student["system"]].load(student["key"], folders, "cuda" if torch.cuda.is_available() else "cpu")

    def _key(self, name: str, seed: int) -> str:
        comparison = self.comparison
        return digest({
            "config": comparison.config(seed).to_dict(), "system": name, "random": comparison.random_architectures,
            "teacher_lr": comparison.teacher_lr,
        })  # fmt: skip

    def _is_current(self, line: Line) -> bool:
        """Of this comparison, with all its models in the store."""
        if line["key"] != self._key(line["system"], line["seed"]):
            return False
        folders = [self.store.root / folder for one in line["students"] for folder in one["models"].values()]
        return all((folder / "stage.json").is_file() for folder in folders)


def _train_in(command: int, records: Records, seed: int) -> list[Line]:
    if os.getpid() != command:
        end_with(command)
    return records.train_seed(seed)


def end_with(parent: int) -> None:
    """Ends this process soon after ``parent``, of which it is a child, was killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def threads_of(workers: int) -> int:
    """Threads of each of so many processes."""
    return max(1, cpu_count() // workers)


def check_sizes(trained: list[Line], measured: Mapping[str, Line]) -> None:
    """Refuses a comparison in which a system has not the size of full ELM's winner.

    Args:
        trained: lines of systems and seeds.
        measured: by key of a student, counted in the built models.

    Raises:
        UserError: naming system, seed and both numbers.
    """
    sizes = {key: line["params_outside_embeddings"] for key, line in measured.items()}
    targets = {line["seed"]: sizes[line["students"][0]["key"]] for line in trained if line["system"] == FULL}
    for line in trained:
        if not SYSTEMS[line["system"]].sized:
            continue
        for one in line["students"]:
            size, target = sizes[one["key"]], targets[line["seed"]]
            if abs(size - target) > SIZE_TOLERANCE * target:
                raise UserError(
                    f"{line['system']}, seed {line['seed']}: {size:,} parameters outside the embeddings, but {FULL} "
                    f"has {target:,}; they are compared only within {SIZE_TOLERANCE:.0%}"
                )


def _student_line(name: str, student: Student) -> Line:
    models = {task: f"{result.name}/{result.digest}" for task, result in student.models.items()}
    return {
        "key": digest([name, models]), "system": name, "models": models,
        "validation": validation_scores(student.models),
        "seconds": {label: result.seconds for label, result in student.stages.items()},
        "architecture": student.architecture, "facts": dict(student.facts),
    }  # fmt: skip


def _students(trained: list[Line]) -> dict[int, dict[str, Line]]:
    """Seed to its students by key."""
    found: dict[int, dict[str, Line]] = {}
    for line in trained:
        found.setdefault(line["seed"], {}).update({one["key"]: one for one in line["students"]})
    return found


def _outcome(line: Line) -> str:
    if "reason" in line:
        return f"left out: {line['reason']}"
    seconds = sum(sum(one["seconds"].values()) for one in line["students"])
    values = [sum(one["validation"].values()) / len(one["validation"]) for one in line["students"]]
    return f"validation {', '.join(f'{value:.4f}' for value in values)}; {seconds:.0f} s of stages, found ones too"
