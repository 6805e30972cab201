"""A search on a PostgreSQL server: two workers, one of them killed; nothing is lost and nothing evaluated twice."""

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from optuna.trial import TrialState

from .test_architecture_study import evaluated, params, quality, search, worker

EVALUATIONS = 160 if os.environ.get("ELM_NNI_LONG_STUDIES") == "1" else 40


@pytest.fixture
def start(postgresql_url: str, tmp_path: Path) -> Iterator[Callable[[float], subprocess.Popen[str]]]:
    """Starts a worker whose evaluations take some seconds."""
    with ExitStack() as stack:

        def one(seconds: float) -> subprocess.Popen[str]:
            process = worker(postgresql_url, tmp_path / "evaluations", EVALUATIONS, seconds)
            stack.callback(process.kill)
            return process

        yield one


@pytest.mark.slow
def test_two_workers_share_a_search_and_one_is_killed(
    postgresql_url: str, tmp_path: Path, start: Callable[[float], subprocess.Popen[str]]
) -> None:
    killed, survivor = start(0.5), start(0.1)
    assert killed.stdout is not None
    begun_before = [killed.stdout.readline().strip() for _ in range(4)][1:]
    # in the middle of its third evaluation
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    cut_off = begun_before[-1]
    helper = start(0.1)
    printed = [process.communicate(timeout=240)[0] for process in (survivor, helper)]
    assert [survivor.returncode, helper.returncode] == [0, 0]

    done = evaluated(tmp_path / "evaluations")
    digests = [digest for _, digest in done]
    assert len(set(digests)) == len(digests) == EVALUATIONS
    begun = Counter(begun_before + [line for text in printed for line in text.split() if line != "ready"])
    assert begun == Counter(digests) + Counter([cut_off]), "only what was cut off is begun a second time"
    assert {pid for pid, _ in done} == {killed.pid, survivor.pid, helper.pid}

    study = search(3, storage=postgresql_url, evaluations=EVALUATIONS)
    claims = {claim.digest: claim for claim in study.finished}
    assert sorted(claims) == sorted(digests)
    owners = {digest: claim.owner.split(":")[1] for digest, claim in claims.items()}
    assert owners == {digest: str(pid) for pid, digest in done}
    assert owners[cut_off] != str(killed.pid)
    trials = study.study.trials
    assert not [trial for trial in trials if not trial.state.is_finished()]
    for claim in claims.values():
        assert trials[claim.trial].state == TrialState.COMPLETE
        assert trials[claim.trial].values == [quality(claim.sample), params(claim.sample)]
        assert claim.metrics == {"default": quality(claim.sample), "params": params(claim.sample)}
    assert study.ask() is None
