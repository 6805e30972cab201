"""The two commands: nnictl's arguments arrive as they were given."""

import pytest
import typer
from typer.testing import CliRunner

from elm_nni.compat import nnictl
from elm_nni.compat.cli import register


@pytest.fixture
def app():
    app = typer.Typer()
    register(app)
    return app


@pytest.mark.parametrize(
    "arguments",
    [
        ["create", "-c", "a.yml", "-p8081", "--foreground", "-df"],
        ["--help"],
        ["-v"],
        ["trial", "kill", "abc", "-T", "x", "--", "-y"],
        ["create", "--listen", "0.0.0.0", "--config=a.yml"],
        [],
    ],
)
def test_arguments_are_passed_through_unchanged(app, monkeypatch, arguments):
    seen = []
    monkeypatch.setattr(nnictl, "run_nnictl", seen.append)
    assert CliRunner().invoke(app, ["nnictl", *arguments]).exit_code == 0
    assert seen == [arguments]


def test_both_have_an_example_in_their_help(app):
    output = CliRunner().invoke(app, ["doctor", "--help"]).output
    assert "elm-nni doctor" in output
    assert "nnictl" in CliRunner().invoke(app, ["--help"]).output
