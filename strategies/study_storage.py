"""The database of an Optuna study: opened by many workers at once, each of which has a number."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import optuna
import sqlalchemy as sa
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError
from sqlalchemy.pool import StaticPool
from sqlalchemy.schema import CreateTable

from elm_nni.errors import UserError, first_line

METADATA = sa.MetaData()
WORKERS = sa.Table(
    "elm_nni_workers", METADATA,
    sa.Column("study", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
)  # fmt: skip

_TRIES = 5
# a failure that took longer than this is no accident of two workers that start together
_PATIENCE_SECONDS = 20.0
# how long a worker waits for another one that writes to an SQLite file
_LOCK_SECONDS = 30
_CONNECT_SECONDS = 10


def open_study(
    url: str | None, name: str, directions: Sequence[Any], **storage_options: Any
) -> tuple[optuna.Study, Engine]:  # fmt: skip
    """A study, a new one or the one that is there, and the engine of its database.

    Args:
        url: of a database, such as ``sqlite:///study.db`` or ``postgresql+psycopg://user@host/studies``. None keeps the
            study in memory, and the database is an empty one beside it.
        directions: of a new study; one that is there keeps its own, which may be others.
        storage_options: of Optuna's ``RDBStorage``, such as ``heartbeat_interval``.

    Raises:
        UserError: the database cannot be opened.

    Example::

        study, engine = open_study("sqlite:///study.db", "eta", ["maximize"])
    """
    if url is None:
        # one connection: each would be a database of its own
        engine = sa.create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
        return optuna.create_study(study_name=name, directions=directions), engine
    failures: list[Exception] = []
    start = time.monotonic()
    while len(failures) < _TRIES and time.monotonic() - start < _PATIENCE_SECONDS:
        try:
            storage = optuna.storages.RDBStorage(url, engine_kwargs=_engine_options(url), **storage_options)
            study = optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
            return study, storage.engine
        except Exception as error:
            # whatever the database's driver raises; two workers that create one database disturb each other
            failures.append(error)
            time.sleep(0.1 * len(failures))
    reason = first_line(failures[-1])
    raise UserError(f"storage {without_password(url)!r} cannot be opened: {reason}") from failures[-1]


def without_password(url: str) -> str:
    """The URL as it can be shown; a driver then takes the password from its own environment, such as PGPASSWORD.

    Example:
        >>> without_password("postgresql+psycopg://me:secret@host/studies")
        'postgresql+psycopg://me@host/studies'
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        return url
    return url if parsed.password is None else str(sa.URL.create(
        parsed.drivername, parsed.username, None, parsed.host, parsed.port, parsed.database, parsed.query
    ))  # fmt: skip


def register_worker(engine: Engine, study_id: int) -> int:
    """Number of this start among all starts of the study, from 0; no two starts get the same one.

    Args:
        engine: of the study's storage.
        study_id: Optuna's number of the study.
    """
    create_tables(engine, [WORKERS])
    known = sa.select(sa.func.max(WORKERS.c.number)).where(WORKERS.c.study == study_id)
    while True:
        try:
            with engine.begin() as connection:
                last = connection.scalar(known)
                number = 0 if last is None else last + 1
                connection.execute(sa.insert(WORKERS).values(study=study_id, number=number))
            return number
        except IntegrityError:
            # another worker took this number: the next one is free for somebody
            continue


def create_tables(engine: Engine, tables: Sequence[sa.Table]) -> None:
    """Makes the tables that are not there."""
    for attempt in range(_TRIES):
        try:
            with engine.begin() as connection:
                for table in tables:
                    connection.execute(CreateTable(table, if_not_exists=True))
            return
        except SQLAlchemyError:
            # "if not exists" can fail when two workers start together
            if attempt == _TRIES - 1:
                raise
            time.sleep(0.1 * (attempt + 1))


def _engine_options(url: str) -> dict[str, Any]:
    kind = make_url(url).get_backend_name()
    if kind == "sqlite":
        return {"connect_args": {"timeout": _LOCK_SECONDS}}
    # Optuna's own default for other databases, and an answer in time from a host that is not there
    options: dict[str, Any] = {"pool_pre_ping": True}
    return {**options, "connect_args": {"connect_timeout": _CONNECT_SECONDS}} if kind == "postgresql" else options
