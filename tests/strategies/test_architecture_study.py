"""The ask-and-tell study against brute force, killed workers and workers side by side."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from elm_nni.analysis.pareto import non_dominated
from elm_nni.errors import UserError
from elm_nni.strategies.architecture_study import ArchitectureStudy, Candidate
from elm_nni.strategies.evolution import Limit
from elm_nni.strategies.optuna_samplers import SAMPLERS
from elm_nni.strategies.study_settings import StudySettings

Sample = dict[str, Any]
KINDS = {"skip": 0, "conv": 1, "wide": 2}
BOTH = {"default": "maximize", "params": "minimize"}


def space(num_layers: int = 3) -> dict[str, list[Any]]:
    """A skipped layer has no width, so 7 architectures a layer in 9 samples."""
    labels = [{f"layer{i}": list(KINDS), f"layer{i}_width": [4, 8, 12]} for i in range(num_layers)]
    return {label: values for layer in labels for label, values in layer.items()}


def canonical(sample: Sample) -> Sample:
    kept = {label: value for label, value in sample.items() if sample[label.removesuffix("_width")] != "skip"}
    return kept | {label: value for label, value in sample.items() if value == "skip"}


def params(sample: Sample) -> float:
    return sum(KINDS[kind] * sample.get(f"{label}_width", 0) for label, kind in sample.items() if "_" not in label)


def quality(sample: Sample) -> float:
    total = -2.0 if sample["layer0"] == "skip" else 0.0
    for number, label in enumerate(label for label in sorted(sample) if "_" not in label):
        gain = {"skip": 0.0, "conv": 1.0, "wide": 1.7}[sample[label]]
        total += gain * (1 + sample.get(f"{label}_width", 0) / (5 + number)) * (3 - number)
    return total


def key(sample: Sample) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(sample.items()))


def everything(num_layers: int = 3) -> dict[tuple[tuple[str, Any], ...], Sample]:
    values = space(num_layers)
    samples = [canonical(dict(zip(values, chosen))) for chosen in itertools.product(*values.values())]
    return {key(sample): sample for sample in samples}


def true_front(samples: list[Sample]) -> set[tuple[tuple[str, Any], ...]]:
    """A double loop, and the package's own routine must agree with it."""
    points = [(-quality(sample), params(sample)) for sample in samples]
    front = set()
    for mine, sample in zip(points, samples):
        beaten = [other for other in points if other[0] <= mine[0] and other[1] <= mine[1] and other != mine]
        if not beaten:
            front.add(key(sample))
    mask = non_dominated(np.array(points, dtype=float))
    assert front == {key(sample) for sample, on_front in zip(samples, mask) if on_front}
    return front


def search(num_layers: int = 3, **settings: Any) -> ArchitectureStudy:
    defaults: dict[str, Any] = {"directions": BOTH, "objectives": {"params": params}, "seed": 0}
    return ArchitectureStudy(space(num_layers), settings=StudySettings(**(defaults | settings)), canonical=canonical)


def finish(study: ArchitectureStudy, evaluate: Callable[[Sample], Any] = quality) -> list[Sample]:
    calls = []
    while (candidate := study.ask()) is not None:
        calls.append(candidate.sample)
        study.tell(candidate, evaluate(candidate.sample))
    return calls


def keys(outcomes: list[tuple[dict[str, float], Sample]]) -> set[tuple[tuple[str, Any], ...]]:
    return {key(sample) for _, sample in outcomes}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'search.db'}"


@pytest.mark.parametrize(
    ("num_layers", "sampler", "evaluations"),
    [(3, "nsgaii", 240), (3, "bruteforce", 343), (2, "grid", 49), (2, "random", 49)],
)
def test_the_whole_pareto_front_is_found(num_layers: int, sampler: str, evaluations: int) -> None:
    samples = list(everything(num_layers).values())
    front = true_front(samples)
    assert (len(samples), len(front)) == {3: (343, 18), 2: (49, 12)}[num_layers]
    args = {"population_size": 20, "mutation_prob": 0.3} if sampler == "nsgaii" else {}
    study = search(num_layers, sampler=sampler, sampler_args=args, evaluations=evaluations)
    calls = finish(study)
    assert len(calls) == len({key(call) for call in calls}) == evaluations
    assert keys(study.front) == front
    assert all(metrics == {"default": quality(one), "params": params(one)} for metrics, one in study.front)
    assert [metrics["default"] for metrics, _ in study.front] == sorted(
        (metrics["default"] for metrics, _ in study.front), reverse=True
    )


def test_brute_force_draws_no_label_that_does_not_count() -> None:
    study = search(2, sampler="bruteforce", evaluations=1000)
    assert len(finish(study)) == 49 == len(study.study.trials)
    assert not study.waiting


def test_limits_are_constraints_and_nothing_over_them_is_evaluated() -> None:
    limits = {"params": Limit(params, 20), "layers": Limit(lambda one: sum(v != "skip" for v in one.values()), 4.5)}
    study = search(sampler="nsgaii", sampler_args={"population_size": 10}, limits=limits, objectives={}, evaluations=30)
    calls = finish(study)
    feasible = [one for one in everything().values() if all(v.measure(one) <= v.maximum for v in limits.values())]
    assert len(calls) == 30 < len(feasible)
    assert {key(call) for call in calls} <= {key(one) for one in feasible}
    assert keys(study.front) == true_front(calls)
    assert study.counts.rejected["params"] > 0
    assert {"default", "params", "layers"} == set(study.front[0][0])
    for trial in study.study.get_trials():
        one = canonical(trial.params)
        assert trial.constraints["params"] == pytest.approx(params(one) / 20 - 1)
        assert all(math.isinf(value) for value in trial.values) == (params(one) > 20 or trial.constraints["layers"] > 0)
    assert keys(study.front) == {key(canonical(trial.params)) for trial in study.study.best_trials}


def test_no_feasible_architecture_is_an_error_with_counts() -> None:
    study = search(limits={"params": Limit(lambda one: 1 + params(one), 0.5)}, objectives={}, max_tries=30)
    with pytest.raises(UserError, match=r"params <= 0.5 refused 30 \(lowest seen \d+\)"):
        study.ask()


def test_a_cost_that_is_no_number_is_over_its_limit() -> None:
    limit = Limit(lambda one: math.nan if one["layer0"] == "wide" else 1.0, 2.0)
    calls = finish(search(1, sampler="bruteforce", limits={"cost": limit}, evaluations=9))
    assert sorted(call["layer0"] for call in calls) == ["conv", "conv", "conv", "skip"]


@pytest.mark.parametrize("directions", [{"default": "maximize"}, BOTH])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning", "ignore::UserWarning")
def test_every_sampler_runs(sampler: str, directions: dict[str, str]) -> None:
    pytest.importorskip("cmaes" if sampler == "cmaes" else "torch" if sampler == "gp" else "optuna")
    if sampler == "cmaes" and len(directions) > 1:
        pytest.skip("CMA-ES has one objective")
    args = {"population_size": 4} if sampler.startswith("nsga") else {}
    args = args | ({"n_startup_trials": 6} if sampler in ("tpe", "gp") else {})
    study = search(
        sampler=sampler, sampler_args=args, directions=directions, limits={"params": Limit(params, 24)},
        objectives={}, evaluations=10,
    )  # fmt: skip
    calls = finish(study)
    assert len({key(call) for call in calls}) == len(calls) == 10
    assert all(params(call) <= 24 for call in calls)
    best = max(quality(call) for call in calls)
    assert study.front[0][0]["default"] == best
    assert len(directions) > 1 or study.best[0]["default"] == best


def test_a_sampler_of_optuna_is_taken_as_it_is() -> None:
    sampler = optuna.samplers.RandomSampler(seed=1)
    study = search(sampler=sampler, evaluations=5)
    assert study.study.sampler is sampler
    assert len(finish(study)) == 5


def test_a_seed_decides_the_search() -> None:
    first, again, other = (finish(search(evaluations=15, seed=seed)) for seed in (3, 3, 4))
    assert first == again != other


@pytest.mark.parametrize("sampler", ["nsgaii", "grid"])
def test_a_resumed_search_evaluates_only_what_is_new(url: str, sampler: str) -> None:
    first = finish(search(2, sampler=sampler, evaluations=6, storage=url))
    drawn_first = len(optuna.load_study(study_name="search", storage=url).trials)
    again = search(2, sampler=sampler, evaluations=6, storage=url)
    assert finish(again) == []
    assert keys(again.outcomes) == {key(call) for call in first}
    longer = search(2, sampler=sampler, evaluations=18, storage=url)
    second = finish(longer)
    assert len(first) == 6
    assert len({key(call) for call in first + second}) == 18
    assert len(longer.outcomes) == 18
    if sampler == "nsgaii":
        drawn = [trial.params for trial in longer.study.get_trials()]
        assert drawn[:drawn_first] != drawn[drawn_first : 2 * drawn_first], "a seed must not draw again what it drew"


def test_a_grid_goes_through_all_cells_over_resumes(url: str) -> None:
    calls: list[Sample] = []
    for evaluations in (3, 5, 7):
        calls += finish(search(1, sampler="grid", evaluations=evaluations, storage=url))
    assert {key(call) for call in calls} == set(everything(1))
    # nothing is left: one cell is drawn again to see that
    assert finish(search(1, sampler="grid", storage=url)) == []
    assert len(search(1, sampler="grid", storage=url).study.trials) <= 9 + 1


def test_a_duplicate_is_told_what_is_known() -> None:
    study = search(1, sampler="random", evaluations=7, max_tries=300)
    finish(study)
    trials = study.study.get_trials()
    assert study.counts.duplicates == len(trials) - 7 > 0
    values = [tuple(trial.values) for trial in trials]
    assert values == [(quality(one), params(one)) for one in (canonical(trial.params) for trial in trials)]


def test_an_evaluation_that_fails_counts_and_is_not_made_again() -> None:
    def evaluate(sample: Sample) -> float | None:
        return None if sample["layer0"] == "wide" else math.nan if sample["layer0"] == "skip" else 1.0

    study = search(1, sampler="random", evaluations=7, max_tries=300)
    calls = finish(study, evaluate)
    assert len(calls) == 7 == len({key(call) for call in calls})
    assert {sample["layer0"] for _, sample in study.outcomes} == {"conv"}
    states = {canonical(trial.params)["layer0"]: trial.state.name for trial in study.study.get_trials()}
    assert states == {"wide": "FAIL", "skip": "FAIL", "conv": "COMPLETE"}


def test_a_result_without_an_objective_is_an_error_and_is_made_again(url: str) -> None:
    settings: dict[str, Any] = {"directions": {"default": "maximize", "recall": "maximize"}, "objectives": {}}
    study = search(storage=url, **settings)
    candidate = study.ask()
    assert candidate is not None
    with pytest.raises(UserError, match="has no 'recall', which directions name; it has default, loss"):
        study.tell(candidate, {"default": 1.0, "loss": 2.0})
    again = search(storage=url, **settings)
    assert again.ask() == candidate
    assert again.tell(candidate, {"default": 1.0, "recall": 0.5, "name": "x", "bad": math.nan})
    assert again.front == [({"default": 1.0, "recall": 0.5}, candidate.sample)]


def test_outcomes_are_in_the_order_of_their_fronts() -> None:
    study = search(2, sampler="bruteforce", evaluations=49)
    finish(study)
    left = list(everything(2).values())
    outcomes = [sample for _, sample in study.outcomes]
    assert len(outcomes) == 49
    while left:
        front = true_front(left)
        assert {key(sample) for sample in outcomes[: len(front)]} == front
        outcomes = outcomes[len(front) :]
        left = [sample for sample in left if key(sample) not in front]


def test_best_is_for_one_objective() -> None:
    study = search(1, directions={"default": "minimize"}, objectives={}, sampler="bruteforce")
    with pytest.raises(UserError, match="no architecture was evaluated: no limits; 0 duplicates"):
        _ = study.best
    finish(study)
    worst = min(everything(1).values(), key=quality)
    assert study.best == ({"default": quality(worst)}, worst)
    with pytest.raises(UserError, match="2 objectives have no best architecture: use front"):
        _ = search().best


def test_values_that_optuna_cannot_store_and_values_it_takes_for_equal() -> None:
    values: dict[str, list[Any]] = {"kernel": [(1, 1), (3, 3)], "flag": [True, 1, 1.0], "op": [0, 1, 2], "w": [2, 4, 8]}
    study = ArchitectureStudy(values, settings=StudySettings(sampler="bruteforce"))
    calls = finish(study, lambda sample: 1.0)
    assert len(calls) == 2 * 3 * 3 * 3
    assert {type(call["kernel"]) for call in calls} == {tuple} == {type(one["kernel"]) for _, one in study.outcomes}
    kinds = {type(one).__name__ for trial in study.study.trials for one in trial.distributions.values()}
    assert kinds == {"CategoricalDistribution"}
    with pytest.raises(UserError, match="label 'x' has values that cannot be stored"):
        ArchitectureStudy({"x": [object(), 1]}, settings=StudySettings())


def test_rising_widths_are_ordered_to_the_sampler() -> None:
    study = search(1, evaluations=1)
    finish(study)
    (trial,) = study.study.get_trials()
    assert trial.distributions["layer0_width"] == optuna.distributions.IntDistribution(4, 12, step=4)


def test_adopted_evaluations_count_once() -> None:
    first = search(1, sampler="bruteforce", evaluations=4)
    finish(first)
    second = search(1, sampler="bruteforce", evaluations=7)
    for _ in range(2):
        for claim in first.finished:
            second.adopt(claim.sample, claim.metrics)
    second.adopt({"layer0": "gone", "layer0_width": 4}, {"default": 1.0, "params": 1.0})
    assert len(second.finished) == 4
    assert len(finish(second)) == 3
    assert keys(second.outcomes) == set(everything(1))


def test_a_stale_evaluation_is_taken_over_and_a_live_one_is_not(url: str) -> None:
    settings: dict[str, Any] = {"storage": url, "sampler": "bruteforce", "evaluations": 7, "grace": 0.6}
    live, gone, taker = (search(1, **settings) for _ in range(3))
    kept, lost = live.ask(), gone.ask()
    assert isinstance(kept, Candidate)
    assert isinstance(lost, Candidate)
    assert kept != lost
    gone.close()
    got: list[Candidate] = []
    end = time.monotonic() + 20
    while len(got) < 6 and time.monotonic() < end:
        candidate = taker.ask()
        if candidate is None:
            time.sleep(0.05)
        else:
            got.append(candidate)
            assert taker.tell(candidate, quality(candidate.sample))
    time.sleep(1.0)
    assert taker.ask() is None
    assert taker.waiting
    assert lost in got
    assert kept not in got
    assert not gone.tell(lost, 99.0)
    assert live.tell(kept, quality(kept.sample))
    assert not taker.waiting
    assert {key(sample): metrics["default"] for metrics, sample in taker.outcomes} == {
        name: quality(sample) for name, sample in everything(1).items()
    }
    for study in (live, taker):
        study.close()


def test_what_was_released_is_taken_at_once(url: str) -> None:
    study = search(1, storage=url)
    candidate = study.ask()
    assert candidate is not None
    study.release(candidate)
    assert search(1, storage=url).ask() == candidate


def test_a_draw_that_was_cut_off_is_drawn_to_its_end(url: str) -> None:
    settings: dict[str, Any] = {"storage": url, "sampler": "bruteforce", "evaluations": 49, "grace": 0.2}
    cut = search(2, **settings)
    cut.study.ask().suggest_categorical("layer0", list(KINDS))
    time.sleep(0.3)
    study = search(2, **settings)
    assert {key(call) for call in finish(study)} == set(everything(2))
    assert len(study.study.trials) == 49


def test_a_result_that_the_study_was_not_told_is_told_by_the_next(url: str) -> None:
    first = search(1, storage=url)
    candidate = first.ask()
    assert candidate is not None
    assert first._claims.finish(candidate.digest, {"default": 5.0, "params": 6.0})
    first.close()
    second = search(1, storage=url)
    second.ask()
    assert second.study.trials[candidate.trial].values == [5.0, 6.0]
    second.close()


WORKER = """
import json, os, sys, time
from tests.strategies.test_architecture_study import params, quality, search
url, path, evaluations, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
study = search(3, storage=url, evaluations=evaluations, grace=2.0, sampler_args={"population_size": 10})
print("ready", flush=True)
while True:
    candidate = study.ask()
    if candidate is None:
        if not study.waiting:
            break
        time.sleep(0.1)
        continue
    print(candidate.digest, flush=True)
    time.sleep(seconds)
    with open(path, "a") as file:
        file.write(json.dumps([os.getpid(), candidate.digest]) + "\\n")
    assert study.tell(candidate, quality(candidate.sample))
study.close()
"""


def worker(url: str, path: Path, evaluations: int, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, url, str(path), str(evaluations), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def evaluated(path: Path) -> list[tuple[int, str]]:
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()]


def test_a_killed_search_goes_on_and_evaluates_nothing_twice(url: str, tmp_path: Path) -> None:
    path = tmp_path / "evaluations"
    first = worker(url, path, 12, 0.2)
    assert first.stdout is not None
    # in the middle of the fifth evaluation
    begun = [first.stdout.readline().strip() for _ in range(6)][1:]
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    before = [digest for _, digest in evaluated(path)]
    assert before == begun[:4]
    second = worker(url, path, 12, 0.0)
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 0
    digests = [digest for _, digest in evaluated(path)]
    assert len(set(digests)) == len(digests) == 12
    assert begun[4] in output.split(), "the killed evaluation is made by the next worker"
    assert len(search(3, storage=url).finished) == 12


def test_a_claim_is_refused_when_all_are_given_out(url: str) -> None:
    first, second = (search(1, storage=url, evaluations=2) for _ in range(2))
    claims = [one._claims.claim(name, 0, {}) for one, name in ((first, "a"), (second, "a"), (second, "b"))]
    owners = [claim.owner for claim in claims if claim is not None]
    assert owners == [first._claims.owner, first._claims.owner, second._claims.owner]
    assert first._claims.claim("c", 0, {}) is None
    for study in (first, second):
        study.close()


def test_two_processes_share_a_search(url: str, tmp_path: Path) -> None:
    path = tmp_path / "evaluations"
    pair = [worker(url, path, 30, 0.02) for _ in range(2)]
    assert [process.wait(timeout=120) for process in pair] == [0, 0]
    done = evaluated(path)
    assert len({digest for _, digest in done}) == len(done) == 30
    assert {pid for pid, _ in done} == {process.pid for process in pair}
    assert {claim.digest for claim in search(3, storage=url).finished} == {digest for _, digest in done}


def test_a_study_of_another_search_is_refused(url: str) -> None:
    search(2, storage=url)
    with pytest.raises(UserError, match="study 'search' has the directions maximize, minimize: choose another"):
        search(2, storage=url, directions={"default": "maximize"}, objectives={})
    with pytest.raises(UserError, match="study 'search' has the objectives default, params: choose another"):
        search(2, storage=url, directions={"default": "maximize", "loss": "minimize"}, objectives={})
    with pytest.raises(UserError, match="study 'search' searches another space: choose another"):
        search(3, storage=url)
    with pytest.raises(UserError, match="study 'search' cannot go on from or to sampler 'bruteforce': choose another"):
        search(2, storage=url, sampler="bruteforce")
    assert len(finish(search(3, storage=url, study_name="other", evaluations=3))) == 3


def test_a_deleted_study_leaves_nothing_behind(url: str) -> None:
    finish(search(1, storage=url, evaluations=3))
    optuna.delete_study(study_name="search", storage=url)
    assert len(finish(search(1, storage=url, evaluations=7, sampler="bruteforce"))) == 7


def test_what_cannot_be_opened_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="storage 'sqlite:.*none/x.db' cannot be opened: .*unable to open") as caught:
        search(storage=f"sqlite:///{tmp_path}/none/x.db")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"'grid' would have 1e\+09 cells, at most 1000000: use 'bruteforce'"):
        ArchitectureStudy({str(i): list(range(10)) for i in range(9)}, settings=StudySettings(sampler="grid"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "nsga"}, "sampler is 'nsga'; allowed: tpe, random"),
        ({"sampler": 3}, "sampler is 3; it must be a name or a sampler of Optuna"),
        ({"sampler_args": {"size": 3}}, "sampler_args has 'size'; nsgaii takes .*population_size"),
        ({"sampler_args": {"population_size": 1}}, "do not fit nsgaii"),
        ({"sampler": optuna.samplers.RandomSampler(), "sampler_args": {"seed": 1}}, "that is made takes none"),
        ({"directions": {}}, "directions is empty"),
        ({"directions": {"default": "up"}}, "directions has 'default': 'up'; allowed: maximize, minimize"),
        ({"objectives": {"loss": params}}, "objectives has 'loss'; it must be in directions: default"),
        ({"objectives": {"default": 3}}, "objectives has 'default': 3; it must be callable"),
        ({"limits": {"params": 5}}, "limits has 'params': 5; it must be a Limit"),
        ({"evaluations": 0}, "evaluations is 0; it must be >= 1"),
        ({"max_tries": 0}, "max_tries is 0; it must be >= 1"),
        ({"grace": 0}, "grace is 0; it must be above 0"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        StudySettings(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sampler", ["gp", "nsgaii"])
def test_a_small_space_is_seen_to_its_end_though_the_sampler_repeats_itself(sampler: str) -> None:
    space = {"a": ["x", "y", "z"], "b": ["x", "y", "z"]}
    study = ArchitectureStudy(space, settings=StudySettings(sampler=sampler, evaluations=9, seed=0))
    while (candidate := study.ask()) is not None:
        study.tell(candidate, float(candidate.sample["a"] == "z"))
    assert len({claim.digest for claim in study.finished}) == 9
