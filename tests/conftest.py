"""What tests of several folders share: one PostgreSQL server."""

from collections.abc import Iterator

import pytest

from .postgresql import Server, server_programs


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    """A running server; without the programs or the driver the test is skipped."""
    pytest.importorskip("psycopg", reason="needs psycopg, of the extra studies")
    programs = server_programs()
    if programs is None:
        pytest.skip("needs the PostgreSQL server: apt-get install postgresql")
    with Server(programs) as server:
        yield server


@pytest.fixture
def postgresql_url(postgresql: Server, request: pytest.FixtureRequest) -> str:
    """URL of a database that is empty and this test's own."""
    return postgresql.database(request.node.name[:60])
