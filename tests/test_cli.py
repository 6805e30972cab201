"""The command line: quick help, one line and exit status 2 for every mistake of a user, nothing lost."""

import subprocess
import sys

import pytest
import torch
import yaml

from elm_nni import cli
from elm_nni.strategies.supernet_files import head_key

from .pipeline.conftest import config_file, own, settings  # noqa: F401


def run_main(monkeypatch, capsys, *arguments):
    """Exit status, output and errors of one call."""
    monkeypatch.setattr(sys, "argv", ["elm-nni", *map(str, arguments)])
    try:
        cli.main()
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def refused(monkeypatch, capsys, *arguments):
    """The one line of a refused call."""
    status, _, err = run_main(monkeypatch, capsys, *arguments)
    lines = [line for line in err.splitlines() if line]
    assert status == 2, err
    assert len(lines) == 1, err
    return lines[0]


@pytest.mark.parametrize(
    "command",
    [
        "run", "supernet", "search", "prune", "retrain", "evaluate", "export", "report", "latency measure", "store ls",
        "store gc",
    ],
)
def test_help_has_an_example(command, monkeypatch, capsys):
    status, out, _ = run_main(monkeypatch, capsys, *command.split(), "--help")
    assert status == 0
    assert f"elm-nni {command}" in " ".join(out.split())


def test_import_is_quick_and_silent():
    code = "import sys, elm_nni, elm_nni.cli; assert 'torch' not in sys.modules; assert 'nni' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nanoo"], ["unknown preset 'nanoo'", "nano"]),
        (["run", "nano", "--set", "growth.topk=3"], ["growth.topk", "growth.top_k"]),
        (["run", "nano", "--set", "growth.top_k"], ["key=value"]),
        (["run", "nano", "--set", "tasks=[polarity"], ["tasks=[polarity", "YAML"]),
        (["run", "nano", "--max-latency-ms", "4,nan"], ["limits.max_latency_ms", "> 0"]),
        (["run", "nano", "--columns", "text=a,label=b"], ["--task"]),
        (["run", "nano", "--task", "polarity", "--kind", "regression"], ["--kind", "polarity"]),
        (["run", "nano", "--task", "a.csv", "--kind", "ranking"], ["tasks.kind", "ranking", "multi_label"]),
        (["run", "nano", "--task", "a.csv", "--columns", "text=a"], ["label", "sentence_embedding"]),
        (
            ["run", "nano", "--task", "a.csv", "--columns", "text=a", "--kind", "sentence_embedding"],
            ["text=NAME,text_pair=NAME"],
        ),
        (
            ["run", "nano", "--task", "a.json", "--columns", "text=a,label=b", "--kind", "question_answering"],
            ["leave it out"],
        ),
        (["run", "nano", "--teacher", "./nowhere"], ["./nowhere", "no such folder", "causal_teacher.py"]),
        (["run", "nano", "--max-params", "6MB"], ["limits.max_params", "6MB", "a number, such as 0.5 or 6M"]),
        (["run", "nano", "--max-params=-3M"], ["limits.max_params", "-3000000", "> 0"]),
        (["run", "nano", "--set", "growth.top_k=2.5"], ["growth.top_k", "2.5", "a whole number"]),
        (["run", "nano", "--set", "limits=5M"], ["limits: expected keys"]),
        (["run", "nano", "--set", "vocabulary.max_size=900"], ["vocabulary.max_size", "900", "vocabulary.trim"]),
        (["run", "nowhere.yaml"], ["file nowhere.yaml does not exist"]),
        (["run", "nano", "--max-latency-ms", "fast"], ["--max-latency-ms", "fast"]),
        (["report", "/nowhere"], ["/nowhere", "config.yaml"]),
        (["store", "gc", "--keep", "/nowhere"], ["/nowhere", "state.json"]),
    ],
)
def test_mistakes_that_need_no_data(arguments, words, monkeypatch, capsys):
    line = refused(monkeypatch, capsys, *arguments)
    for word in words:
        assert word in line


@pytest.fixture
def call(config_file, tmp_path, monkeypatch, capsys):  # noqa: F811
    """Runs the user's own configuration with some keys replaced, and returns the refusal."""
    monkeypatch.setenv("ELM_NNI_STORE", str(tmp_path / "store"))

    def refuse(*sets, options=(), run_dir=None):
        assignments = [part for item in sets for part in ("--set", item)]
        return refused(
            monkeypatch, capsys, "run", config_file, "--run-dir", run_dir or tmp_path / "run", *assignments, *options
        )

    return refuse


def test_texts_that_cannot_be_read(call, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    assert "empty.txt" in call(f"data.corpus={tmp_path}/empty.txt", run_dir=tmp_path / "a")
    (tmp_path / "latin.txt").write_bytes("a caf\xe9 story".encode("latin-1"))
    line = call(f"data.corpus={tmp_path}/latin.txt", run_dir=tmp_path / "b")
    assert "latin.txt" in line
    assert "UTF-8" in line


def test_tasks_that_cannot_be_used(call, own, tmp_path):  # noqa: F811
    options = ["--task", str(own / "reviews.csv"), "--columns", "text=review,label=grade"]
    line = call(options=options, run_dir=tmp_path / "a")
    assert "grade" in line
    assert "review, stars" in line
    (tmp_path / "one.csv").write_text("text,label\n" + "".join(f"word {i},same\n" for i in range(40)))
    assert "one class" in call(options=["--task", str(tmp_path / "one.csv")], run_dir=tmp_path / "b")
    assert "polarity" in call(options=["--task", "polarty"], run_dir=tmp_path / "c")


def test_limits_that_nothing_meets_name_the_best(call, tmp_path):
    line = call("limits.max_params=1500", run_dir=tmp_path / "a")
    assert "limits.max_params" in line
    assert "smallest architecture has" in line
    line = call("limits.max_params=5.5", run_dir=tmp_path / "b")
    assert "limits.max_params: 5.5 is not allowed" in line
    assert "of them embeddings of 27 tokens" in line
    line = call("limits.max_latency_ms=0.000001", run_dir=tmp_path / "c")
    assert "limits.max_latency_ms" in line
    assert "fastest architecture takes" in line


def test_lengths_beyond_the_teachers(call):
    line = call("data.sequence_length=100")
    assert "data.sequence_length" in line
    assert "64" in line


@pytest.mark.parametrize(
    ("file", "name"), [("train.csv", "train"), ("type.csv", "type"), ("reviews.2024.csv", "reviews_2024")]
)
def test_any_file_name_makes_a_task(file, name, own, tmp_path, config_file, monkeypatch, capsys):  # noqa: F811
    (task,) = cli._task(str(tmp_path / file), "text=review,label=stars", None, None)
    assert task["name"] == name
    torch.nn.ModuleDict({head_key(name): torch.nn.Identity()})
    monkeypatch.setenv("ELM_NNI_STORE", str(tmp_path / "store"))
    (tmp_path / file).write_bytes((own / "reviews.csv").read_bytes())
    tasks = yaml.safe_dump([{**task, "max_length": 16}], default_flow_style=True, width=1000).strip()
    status, _, err = run_main(monkeypatch, capsys, "run", config_file, "--plan", "--set", f"tasks={tasks}")
    assert status == 0, err


def test_a_task_of_another_kind_from_the_command_line():
    assert cli._task("lhoestq/conll2003", "text=tokens,label=ner_tags", None, "token_classification") == [
        {
            "name": "conll2003", "source": "lhoestq/conll2003", "kind": "token_classification", "text": "tokens",
            "label": "ner_tags",
        }
    ]  # fmt: skip
    assert cli._task("pairs.csv", "text=query,text_pair=document", None, "sentence_embedding") == [
        {
            "name": "pairs", "source": "pairs.csv", "kind": "sentence_embedding", "text": "query",
            "text_pair": "document",
        }
    ]  # fmt: skip
    assert cli._task("stsb", None, None, None) == [{"name": "stsb"}]


def test_growth_that_cannot_be(call, tmp_path):
    assert "multiple of" in call("growth.epoch_steps=3", run_dir=tmp_path / "a")
    line = call("growth.budget=5000", run_dir=tmp_path / "b")
    assert "growth.budget: 5,000 is not allowed; it must be at least" in line
    assert not (tmp_path / "store" / "teacher").exists()


def test_tasks_are_read_before_the_text(call, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    mistakes = ["tasks=[{name: a, source: missing.tsv}]", f"data.corpus={tmp_path}/empty.txt"]
    assert "file missing.tsv does not exist" in call(*mistakes)
    line = call(mistakes[1], "data.sequence_length=100", run_dir=tmp_path / "b")
    assert "take at most 64 tokens" in line


def test_text_in_another_column(call, tmp_path):
    (tmp_path / "text.csv").write_text("words\n" + "a long story\n" * 40)
    line = call(f"data.corpus={tmp_path}/text.csv")
    assert "has no column 'text'; its columns: words; data.text_column" in line


def test_too_many_held_out_rows(call):
    assert "data.holdout_rows" in call("data.holdout_rows=100000")


def test_a_teacher_that_cannot_be_loaded(call, tmp_path):
    assert "nowhere" in call(options=["--teacher", str(tmp_path / "nowhere")])


def test_a_run_directory_of_another_configuration_is_left_alone(call, tmp_path):
    call("limits.max_params=1500")
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    line = call("growth.top_k=1")
    assert "another configuration" in line
    assert "growth.top_k: 3 there, 1 asked for" in line
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


def test_a_run_directory_that_cannot_be_written(call, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write run directory" in call(run_dir=tmp_path / "file" / "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").write_text("precious")
    assert "other files" in call(run_dir=tmp_path / "full")
    assert (tmp_path / "full" / "thesis.doc").read_text() == "precious"


def test_plan_trains_nothing_and_shows_hours_disk_and_reach(config_file, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setenv("ELM_NNI_STORE", str(tmp_path / "store"))
    status, out, err = run_main(monkeypatch, capsys, "run", config_file, "--plan", "--run-dir", tmp_path / "run")
    assert status == 0, err
    for word in ("supernet", "hours", "disk", "parameters:", "latency:", "to do"):
        assert word in out
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "store" / "supernet").exists()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("limits.max_params=300", "of 27 tokens"),
        ("data.sequence_length=100", "64"),
        ("growth.epoch_steps=3", "multiple of"),
    ],
)
def test_plan_refuses_what_a_run_would(change, word, config_file, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setenv("ELM_NNI_STORE", str(tmp_path / "store"))
    assert word in refused(monkeypatch, capsys, "run", config_file, "--plan", "--set", change)


def test_latency_measure_writes_a_table_that_a_run_accepts(config_file, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setenv("ELM_NNI_STORE", str(tmp_path / "store"))
    table = tmp_path / "table.json"
    status, out, err = run_main(monkeypatch, capsys, "latency", "measure", config_file, "--out", table)
    assert status == 0, err
    assert "eager fp32, cpu, 1 thread, batch 1, 16 tokens" in out
    arguments = ["run", config_file, "--plan", "--set", f"latency.table={table}"]
    assert run_main(monkeypatch, capsys, *arguments)[0] == 0
    line = refused(monkeypatch, capsys, *arguments, "--set", "latency.threads=2")
    assert "1 thread" in line
    assert "2 threads" in line


def test_yaml_of_the_run_directory_is_the_resolved_configuration(config_file, own):  # noqa: F811
    assert yaml.safe_load(config_file.read_text()) == settings(own)


def test_the_table_names_every_metric_where_there_are_several(tmp_path):
    row = {"name": "ELM (ours)", "tasks": {"text": -2.5}, "params": 5, "megabytes": 1.0, "latency_ms": 2.0}
    task = {"kind": "causal_lm", "metric": "log_likelihood", "n": 7}
    results = {"systems": [row], "tasks": {"text": task}, "latency_ms": {"condition": "eager"}}
    several = "text, ELM (ours): log_likelihood -2.5000, perplexity 12.1825"
    assert several not in cli.results_lines(results, tmp_path)
    task["metrics"] = {"log_likelihood": -2.5, "perplexity": 12.1825}
    lines = cli.results_lines(results, tmp_path)
    assert several in lines
    assert "from transformers import AutoModelForCausalLM, AutoTokenizer" in lines
