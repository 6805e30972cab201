"""The documents against the code: every key and default, every command, every snippet."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from elm_nni import cli
from elm_nni.cli import app
from elm_nni.pipeline.config import Config, TaskConfig, preset_names
from elm_nni.pipeline.conversion import parse_count

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^(<!-- run -->\n)?```python\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def settings(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a configuration with its value; the keys of a task are ``tasks[].name`` and so on."""
    for field in fields(values):
        value = getattr(values, field.name)
        if is_dataclass(value):
            yield from settings(value, f"{prefix}{field.name}.")
        elif field.name == "tasks" and not prefix:
            yield from settings(TaskConfig(), "tasks[].")
        else:
            yield f"{prefix}{field.name}", list(value) if isinstance(value, tuple) else value


def documented() -> dict[str, Any]:
    """Key to default, out of the tables."""
    rows = re.findall(r"^\| `([^`]+)` \| [^|]+ \| `([^`]+)` \| [^|]+ \| [^|]+ \|$", CONFIGURATION, flags=re.MULTILINE)
    assert len(dict(rows)) == len(rows)
    return {key: parse_count(yaml.safe_load(default)) for key, default in rows}


def test_every_repair_of_nni_is_in_its_page() -> None:
    from elm_nni.compat.manager_repairs import MANAGER_REPAIRS
    from elm_nni.compat.nas_repairs import NAS_REPAIRS
    from elm_nni.compat.python_repairs import PYTHON_REPAIRS

    page = (ROOT / "docs" / "nni.md").read_text(encoding="utf-8")
    rows = [name for cell in re.findall(r"^\| ([^|`]+) \| ", page, flags=re.MULTILINE) for name in cell.split(", ")]
    names = {repair.name for repair in (*MANAGER_REPAIRS, *PYTHON_REPAIRS, *NAS_REPAIRS)}
    assert names <= set(rows)


def test_every_key_is_documented_with_its_default() -> None:
    assert documented() == dict(settings(Config()))


def test_the_documented_presets_are_those_that_exist() -> None:
    for name in preset_names():
        assert f"`{name}`" in README
        assert f"`{name}`" in CONFIGURATION


def commands() -> set[str]:
    """Every command of the program, groups with their commands."""
    found = set()
    for name, command in typer.main.get_command(app).commands.items():
        found |= {f"{name} {inner}" for inner in getattr(command, "commands", {})} or {name}
    return found


def test_every_command_of_the_readme_exists_and_none_is_left_out() -> None:
    named = set()
    for words in re.findall(r"elm-nni ([a-z]+(?: [a-z]+)?)", README):
        first = words.split()[0]
        groups = {command.split()[0] for command in commands() if " " in command}
        named.add(words if first in groups else first)
    assert named == commands()


def test_every_option_of_the_readme_exists() -> None:
    known = {"--help"}
    stack = [typer.main.get_command(app)]
    while stack:
        command = stack.pop()
        stack += getattr(command, "commands", {}).values()
        known |= {name for parameter in command.params for name in parameter.opts}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", README)) <= known


def test_the_keys_of_the_readme_exist() -> None:
    known = dict(settings(Config()))
    sections = {key.split(".")[0] for key in known if "." in key and "[" not in key}
    named = re.findall(r"`([a-z_]+\.[a-z_0-9.]+)[`:]", README)
    found = [key for key in named if key.split(".")[0] in sections]
    assert found
    assert [key for key in found if key not in known] == []


def test_versions_are_those_of_the_constraints() -> None:
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line
    )
    rows = dict(re.findall(r"^\| ([a-z-]+) \| ([0-9.]+) \|$", README, flags=re.MULTILINE))
    assert {"torch", "transformers", "nni", "pytorch-lightning", "optuna", "datasets", "numpy"} == set(rows)
    assert rows == {name: pinned[name] for name in rows}
    assert f"version = {{{version('elm-nni')}}}" in README


def test_links_lead_to_files() -> None:
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/README.md")]
    assert len(files) >= 13
    for file in files:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", file.read_text(encoding="utf-8")):
            assert target.startswith("https://") or file.parent.joinpath(target).exists(), (file, target)


def test_commands_of_the_tasks_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run of nano that the page on tasks names, up to the point where data would be loaded."""
    text = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    found = {}
    monkeypatch.setattr(cli, "_open", lambda config, target, store: found.setdefault(target.name, config))
    monkeypatch.setattr(cli, "_finish", lambda run: None)
    for line in re.findall(r"elm-nni (run nano [^`\n]+)", text):
        monkeypatch.setattr("sys.argv", ["elm-nni", *shlex.split(line)])
        with pytest.raises(SystemExit, match="^0$"):
            cli.main()
    kinds = {name: config.tasks[0].kind for name, config in found.items() if name in text and config.tasks[0].source}
    assert kinds == {
        "moods": "multi_label", "entities": "classification", "answers": "question_answering",
        "found": "sentence_embedding", "alike": "regression",
    }  # fmt: skip
    assert [task.name for task in found["glue"].tasks] == ["mrpc", "stsb", "mnli"]
    assert found["squad"].teacher.head == found["answers"].teacher.head == "finetune"
    assert found["trimmed"].vocabulary.trim


def test_files_named_by_the_method_exist() -> None:
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:elm_nni|strategies|search_spaces)/[a-z_/]+(?:\.py)?)`", text)
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    ("marker", "code"), BLOCKS, ids=[next(filter(None, code.splitlines())) for _, code in BLOCKS]
)
def test_snippets_compile_and_those_marked_run(marker: str, code: str) -> None:
    compiled = compile(code, "README.md", "exec")
    imported = [line for line in code.splitlines() if line.startswith(("import ", "from "))]
    exec("\n".join(imported), {})
    if marker:
        exec(compiled, {"__name__": "readme"})


def test_some_snippets_run() -> None:
    assert sum(bool(marker) for marker, _ in BLOCKS) >= 5
