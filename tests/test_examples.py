"""The examples do what they say, started from a folder that is not theirs."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from elm_nni.pipeline.config import load_config

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(folder: Path, name: str, *arguments: str) -> str:
    """What the example prints; it asserts its own result."""
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    # NNI keeps a list of experiments at home
    home, work = folder / "home", folder / "work"
    home.mkdir()
    work.mkdir()
    settings = {"HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=work, env=os.environ | settings, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert list(work.iterdir()) == []
    return done.stdout


def test_own_data_is_a_configuration():
    config = load_config(str(EXAMPLES / "own_data.yaml"))
    assert (config.teacher.name, config.tasks[0].source, config.limits.max_params) == ("./my-bert", "reviews.csv", 6e6)


def test_every_example_is_in_the_table_and_every_file_of_the_table_exists():
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `([^`]+)` \|", table, flags=re.MULTILINE))
    inside = {name for name in named if "/" in name.rstrip("/")}
    assert all((EXAMPLES / name).is_file() for name in inside)
    there = {path.name + "/" * path.is_dir() for path in EXAMPLES.iterdir() if path.name[0] not in "_.R"}
    assert named - inside == there


def test_every_optuna_example_is_in_its_table():
    table = (EXAMPLES / "optuna" / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `([^`]+)` \|", table, flags=re.MULTILINE))
    assert named == {path.name for path in (EXAMPLES / "optuna").iterdir() if path.name[0] not in "_.R"}


def test_a_causal_teacher_learns_its_text(tmp_path):
    text, out = tmp_path / "text.txt", tmp_path / "teacher"
    sentences = ["the film was long", "the plot was thin", "an actor was lost", "the end was near"]
    text.write_text("\n".join(sentences[number % 4] for number in range(4000)), encoding="utf-8")
    small = {
        "steps": 60, "vocabulary": 300, "layers": 1, "width": 16, "heads": 2, "length": 16, "batch-size": 8, "lr": 1e-2,
        "held-out": 256,
    }  # fmt: skip
    options = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    (tmp_path / "short.txt").write_text("\n".join(sentences), encoding="utf-8")
    script = [sys.executable, str(EXAMPLES / "causal_teacher.py"), str(out), *options, "--corpus"]
    for wrong, words in (("no.txt", "file no.txt does not exist"), (str(tmp_path / "short.txt"), "--held-out is 256")):
        refused = subprocess.run([*script, wrong], capture_output=True, text=True, timeout=600, cwd=tmp_path)
        assert refused.returncode == 1
        assert refused.stderr.splitlines()[-1].startswith(f"causal_teacher.py: {words}")
    # what was begun with another corpus does not show
    printed = run(tmp_path, "causal_teacher.py", str(out), "--corpus", str(text), *options)
    facts = json.loads(printed.splitlines()[-1])
    # of five tokens or so the first is free and one more is uncertain
    assert facts["held-out perplexity"] < 10
    assert facts["held-out rows"] == 256
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert facts["parameters"] == model.num_parameters()
    assert tokenizer.decode(tokenizer("the café, 7 films")["input_ids"]) == "the café, 7 films"
    # its checkpoints are gone
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "short.txt", "teacher", "text.txt", "work"]


@pytest.mark.slow
def test_growth_goes_to_the_data_that_needs_it(tmp_path):
    printed = run(tmp_path, "grow_own_module.py")
    digits, signals = map(int, re.search(r"\{'digits': (\d+), 'signals': (\d+)\}", printed).groups())
    assert digits >= 20
    assert signals <= 8


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["RandomOneShot", "DARTS", "GumbelDARTS", "Proxyless"])
def test_layers_come_closer_to_the_teachers_under_every_one_shot_strategy(strategy, tmp_path):
    printed = run(tmp_path, "distil_any_oneshot.py", strategy)
    early, late = map(float, re.search(rf"{strategy}: .* first 20 steps (\S+), last 20 steps (\S+)", printed).groups())
    assert 0 < late < early
    assert f"{strategy}: found {{'first': '" in printed


@pytest.mark.slow
def test_an_unknown_strategy_is_refused_before_anything_is_trained():
    command = [sys.executable, str(EXAMPLES / "distil_any_oneshot.py"), "ENAS"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("strategy 'ENAS': must be one of RandomOneShot, DARTS")


@pytest.mark.slow
def test_the_evolved_model_of_a_hub_space_keeps_both_limits(tmp_path):
    printed = run(tmp_path, "evolve_hub_space.py")
    parameters, allowed = re.search(r"([\d,]+) parameters of ([\d,]+) allowed", printed).groups()
    assert 0 < int(parameters.replace(",", "")) <= int(allowed.replace(",", ""))
    share, limit = map(float, re.search(r"(\S+) of the reference's latency, (\S+) allowed", printed).groups())
    assert 0 < share <= limit
    assert re.search(r"\d+ trained, \{'parameters': [1-9]\d*, 'latency': [1-9]\d*\} refused", printed)


@pytest.mark.slow
def test_a_stock_bert_loses_heads_and_loads_again(tmp_path):
    printed = run(tmp_path, "prune_stock_bert.py")
    rows = re.findall(r"eta (\S+): heads (\[.*?\]), parameters 22,713,216 -> ([\d,]+), .* (\d\.\d+)$", printed, re.M)
    (_, few, small, moved), (_, fewer, smaller, more_moved) = rows
    assert 72 > sum(map(int, re.findall(r"\d+", few))) > sum(map(int, re.findall(r"\d+", fewer)))
    assert int(small.replace(",", "")) > int(smaller.replace(",", ""))
    assert 1 > float(moved) > float(more_moved) > 0.5
    assert "loaded as BertModel: the same embeddings" in printed


@pytest.mark.slow
def test_a_space_of_ones_own_is_searched_for_a_front(tmp_path):
    printed = run(tmp_path, "optuna/tune_own_space.py")
    lines = re.findall(r"^(\S+)% with (\S+) parameters: (\{.*\})$", printed, re.M)
    assert len(lines) == len(printed.splitlines()) > 2
    front = [(float(right), int(size.replace(",", "")), ast.literal_eval(sample)) for right, size, sample in lines]
    for _, size, sample in front:
        width = sample["width"]
        between = width * width + width if sample["middle"] == "linear" else 0
        assert size == 64 * width + width + between + 10 * width + 10
    # every smaller network is less accurate
    for (right, size, _), (worse, smaller, _) in zip(front, front[1:]):
        assert smaller < size
        assert worse < right
    assert front[0][0] > 80
