"""Imports run one way, those inside functions too."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A part may import from parts below its own level, and from itself; those of the first row also from each other.
LEVELS = (
    {"analysis", "data", "distillation", "kinds", "modeling"},
    {"search_spaces"},
    {"cost"},
    {"strategies", "export", "report"},
    {"pipeline"},
    {"compat", "tuning"},
    {"cli"},
)
TOP = {"cache", "digest", "errors", "files", "seeding", "training"}


def sources() -> Iterator[tuple[str, Path]]:
    """Part and file of every module."""
    patterns = ("elm_nni/**/*.py", "search_spaces/*.py", "strategies/*.py")
    for path in sorted(path for pattern in patterns for path in ROOT.glob(pattern)):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield parts[1] if parts[0] == "elm_nni" else parts[0], path


def imported(path: Path) -> set[str]:
    """The parts of ``elm_nni`` that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in found if name.startswith("elm_nni.")}


def level(part: str) -> int:
    return next(number for number, parts in enumerate(LEVELS) if part in parts)


FILES = [pytest.param(part, path, id=str(path.relative_to(ROOT))) for part, path in sources()]


@pytest.mark.parametrize(("part", "path"), FILES)
def test_a_module_imports_only_what_stands_below_it(part: str, path: Path) -> None:
    if path == ROOT / "elm_nni" / "__init__.py":
        assert not imported(path)
    elif part in TOP:
        assert imported(path) <= TOP
    else:
        mine = level(part)
        allowed = TOP | {part} | set().union(*LEVELS[:mine]) | (LEVELS[0] if mine == 0 else set())
        assert imported(path) <= allowed
