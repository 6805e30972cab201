"""How long a comparison will take here: what each system builds that no system before it has built."""

from __future__ import annotations

from elm_nni.pipeline.context import Context
from elm_nni.pipeline.plan import estimated_seconds
from elm_nni.pipeline.precision import build_precision, load_precision, precision_inputs
from quality.records import Records
from quality.systems import DRAWN, SYSTEMS

# to write and quantise one graph
INT8_SECONDS = 15.0
_PARTS = {
    "teacher": ("teacher",), "supernet": ("supernet",), "supernet_tasks": ("supernet_tasks",),
    "search": ("search (evaluations)",), "training": ("retrain and baseline", "fine-tune and baseline"),
}  # fmt: skip


def estimate(records: Records, workers: int = 1) -> list[str]:
    """A line for each system with the seeds that are still to do, and the sum; one line where nothing is.

    Times a few steps where the store has no such measurement. What the store holds of unfinished systems counts as if
    it were not there.
    """
    comparison = records.comparison
    known = {seed: records.trained(seed) for seed in range(comparison.num_seeds)}
    if all(name in known[seed] for name, seeds in comparison.systems.items() for seed in range(seeds)):
        return ["every system is trained"]
    seconds = stage_seconds(records.trial(0).run().context)
    lines, total = [f"{'system':<36}{'seeds':>6}{'to do':>6}{'minutes each':>14}{'minutes':>9}"], 0.0
    for name, seeds in comparison.systems.items():
        times = comparison.random_architectures if name in DRAWN else 1
        each = times * sum(seconds[stage] for stage in SYSTEMS[name].builds)
        left = sum(name not in known[seed] for seed in range(seeds))
        total += left * each
        lines.append(f"{name:<36}{seeds:>6}{left:>6}{each / 60:>14.1f}{left * each / 60:>9.1f}")
    shared = f" of {workers} processes" if workers > 1 else ""
    return [*lines, f"about {total / workers / 60:.0f} minutes in all{shared}, timings and test rows not counted"]


def stage_seconds(context: Context) -> dict[str, float]:
    """Estimated seconds of the stages that systems build."""
    timing = context.store.build("precision", precision_inputs(context), lambda to: build_precision(context, to))
    chosen = load_precision(timing.folder)
    found = {name: spent for name, _, spent in estimated_seconds(context, chosen)}
    seconds = {stage: sum(found[part] for part in parts) for stage, parts in _PARTS.items()}
    # the baseline that a run trains is a system of its own here
    seconds["training"] /= 1 + context.config.baselines.uniform
    # a teacher trains at the cost of three forwards; a cut one has about half of its layers
    finetune, per_token = context.config.retrain.finetune, chosen["teacher_seconds"]["fp32"] / chosen["tokens"]
    lengths = sum(float(task.train.lengths.mean()) for task in context.tasks.values())
    seconds["teacher_training"] = 3 * per_token * finetune.steps * finetune.batch_size * lengths
    seconds["cut_training"] = seconds["teacher_training"] / 2
    seconds["int8"] = INT8_SECONDS * len(context.tasks)
    return seconds
