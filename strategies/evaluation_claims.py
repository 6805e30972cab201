"""Who evaluates which architecture: one row an architecture, in the database of an Optuna study."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from elm_nni.strategies.study_storage import METADATA, WORKERS, create_tables, register_worker

logger = logging.getLogger(__name__)

RUNNING, DONE, FAILED = "running", "done", "failed"

_CLAIMS = sa.Table(
    "elm_nni_claims", METADATA,
    sa.Column("study", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("trial", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("owner", sa.String(128), nullable=False),
    sa.Column("heartbeat", sa.Double, nullable=False),
    sa.Column("sample", sa.Text, nullable=False),
    sa.Column("metrics", sa.Text),
)  # fmt: skip

@dataclass(frozen=True)
class Claim:
    """An architecture that is being evaluated or was.

    Attributes:
        digest: name of the canonical sample.
        trial: number of the study's trial that was asked for it.
        state: ``running``, ``done`` or ``failed``.
        owner: the worker that evaluates it, or did.
        heartbeat: when its worker was last known to live, in seconds since 1970 by the database's clock.
        sample: the canonical sample.
        metrics: name to number when it is done.
    """

    digest: str
    trial: int
    state: str
    owner: str
    heartbeat: float
    sample: dict[str, Any]
    metrics: dict[str, float] | None


class EvaluationClaims:
    """Claims of one worker of one study.

    The primary key (study, digest) lets one worker evaluate an architecture. A thread renews the heartbeats of what
    this worker runs; a claim without a heartbeat for ``grace`` seconds can be taken over, and its former owner's result
    is refused. Statements are portable SQL; tried on SQLite and PostgreSQL.

    Args:
        engine: of the study's storage.
        study_id: Optuna's number of the study.
        total: at most so many architectures get a claim, all workers together.
        grace: seconds without a heartbeat after which a worker counts as dead.
        beat: whether other processes may see the database, so that heartbeats matter.

    Attributes:
        worker: number of this start among all starts of the study, from 0.
    """

    def __init__(self, engine: Engine, study_id: int, *, total: int, grace: float = 60.0, beat: bool = True) -> None:
        self.total, self.grace, self.owner = total, grace, f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex}"
        self._engine, self._study, self._beats = engine, study_id, beat
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        create_tables(engine, [_CLAIMS])
        self.worker = register_worker(engine, study_id)

    def claim(self, digest: str, trial: int, sample: Mapping[str, Any]) -> Claim | None:
        """Inserts a claim of this worker, or returns the one that is there; None when ``total`` is reached."""
        with self._engine.begin() as connection:
            self._lock(connection)
            found = connection.execute(sa.select(_CLAIMS).where(self._is(digest))).one_or_none()
            if found is not None:
                return _claim(found)
            claims = sa.select(sa.func.count()).where(_CLAIMS.c.study == self._study)
            if connection.execute(claims).scalar_one() >= self.total:
                return None
            claim = Claim(digest, trial, RUNNING, self.owner, _now(connection), dict(sample), None)
            self._insert(connection, claim)
        self._start_beating()
        return claim

    def take_stale(self) -> Claim | None:
        """Takes over a claim whose worker shows no sign of life, if there is one."""
        with self._engine.begin() as connection:
            now = _now(connection)
            stale = sa.and_(self._running(), _CLAIMS.c.heartbeat < now - self.grace, _CLAIMS.c.owner != self.owner)
            found = connection.execute(sa.select(_CLAIMS).where(stale).order_by(_CLAIMS.c.trial).limit(1)).one_or_none()
            if found is None:
                return None
            as_read = sa.and_(_CLAIMS.c.owner == found.owner, _CLAIMS.c.heartbeat == found.heartbeat)
            swap = sa.update(_CLAIMS).where(self._is(found.digest), self._running(), as_read)
            taken = connection.execute(swap.values(owner=self.owner, heartbeat=now)).rowcount == 1
        if not taken:
            return None
        self._start_beating()
        return Claim(found.digest, found.trial, RUNNING, self.owner, now, json.loads(found.sample), None)

    def finish(self, digest: str, metrics: Mapping[str, float] | None) -> bool:
        """Stores the outcome, None for a failure; False if the claim is no longer this worker's."""
        return self._update_mine(digest, state=FAILED if metrics is None else DONE, metrics=_text(metrics))

    def release(self, digest: str) -> bool:
        """Lets the next worker that looks take the claim over at once."""
        return self._update_mine(digest, owner="", heartbeat=0.0)

    def adopt(self, digest: str, trial: int, sample: Mapping[str, Any], metrics: Mapping[str, float] | None) -> None:
        """Stores an outcome of another study, for an architecture without a claim; ``total`` does not limit it."""
        state = FAILED if metrics is None else DONE
        claim = Claim(digest, trial, state, self.owner, 0.0, dict(sample), None if metrics is None else dict(metrics))
        with self._engine.begin() as connection:
            self._insert(connection, claim)

    def renew(self) -> None:
        """Writes a sign of life for all that this worker runs."""
        with self._engine.begin() as connection:
            mine = sa.and_(self._running(), _CLAIMS.c.owner == self.owner)
            connection.execute(sa.update(_CLAIMS).where(mine).values(heartbeat=_now(connection)))

    def get(self, digest: str) -> Claim | None:
        """The claim on an architecture, if there is one."""
        with self._engine.begin() as connection:
            found = connection.execute(sa.select(_CLAIMS).where(self._is(digest))).one_or_none()
        return None if found is None else _claim(found)

    def all(self) -> list[Claim]:
        """Every claim of the study, in the order of trials."""
        with self._engine.begin() as connection:
            rows = connection.execute(
                sa.select(_CLAIMS).where(_CLAIMS.c.study == self._study).order_by(_CLAIMS.c.trial)
            ).all()
        return [_claim(row) for row in rows]

    def counts(self) -> Counter[str]:
        """How many claims there are of each state."""
        state = _CLAIMS.c.state
        states = sa.select(state, sa.func.count()).where(_CLAIMS.c.study == self._study).group_by(state)
        with self._engine.begin() as connection:
            return Counter(dict(connection.execute(states).tuples().all()))

    def clear(self) -> None:
        """Drops every claim of the study."""
        with self._engine.begin() as connection:
            connection.execute(sa.delete(_CLAIMS).where(_CLAIMS.c.study == self._study))

    def close(self) -> None:
        """Ends the heartbeats; claims that still run go stale."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _is(self, digest: str) -> Any:
        return sa.and_(_CLAIMS.c.study == self._study, _CLAIMS.c.digest == digest)

    def _running(self) -> Any:
        return sa.and_(_CLAIMS.c.study == self._study, _CLAIMS.c.state == RUNNING)

    def _insert(self, connection: Connection, claim: Claim) -> None:
        texts = {"sample": _text(claim.sample), "metrics": _text(claim.metrics)}
        connection.execute(sa.insert(_CLAIMS).values({"study": self._study, **vars(claim), **texts}))

    def _update_mine(self, digest: str, **values: Any) -> bool:
        with self._engine.begin() as connection:
            mine = sa.update(_CLAIMS).where(self._is(digest), self._running(), _CLAIMS.c.owner == self.owner)
            return connection.execute(mine.values(**values)).rowcount == 1

    def _lock(self, connection: Connection) -> None:
        # a row that every claim of the study writes first: the count below is then exact on any database
        first = sa.and_(WORKERS.c.study == self._study, WORKERS.c.number == 0)
        connection.execute(sa.update(WORKERS).where(first).values(number=0))

    def _start_beating(self) -> None:
        if self._beats and self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._beat, name="elm-nni-heartbeat", daemon=True)
            self._thread.start()

    def _beat(self) -> None:
        while not self._stop.wait(self.grace / 6):
            try:
                self.renew()
            except SQLAlchemyError as error:
                # the next beat may get through; until then others see this worker grow old
                logger.warning("a heartbeat was not written: %s", str(error).splitlines()[0])


def _claim(row: Any) -> Claim:
    metrics = None if row.metrics is None else json.loads(row.metrics)
    return Claim(row.digest, row.trial, row.state, row.owner, row.heartbeat, json.loads(row.sample), metrics)


def _text(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else json.dumps(dict(value), allow_nan=False)


def _now(connection: Connection) -> float:
    """Seconds since 1970 by the database's clock, which all workers share."""
    if connection.dialect.name == "sqlite":
        # a file of one machine; the database's own clock has whole seconds
        return time.time()
    now = connection.execute(sa.select(sa.func.current_timestamp())).scalar_one()
    return (now if now.tzinfo else now.replace(tzinfo=UTC)).timestamp()
