"""The comparison of systems: its quick form, killed once, and its numbers against its files."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from common import run_command
from quality import command, records, systems
from quality.comparison import FULL, Comparison, load_comparison
from quality.document import (
    cost_table,
    document,
    findings_table,
    layers_table,
    make_results,
    metrics_table,
    quality_table,
)
from quality.findings import findings
from quality.records import Records
from quality.rows import MEAN, Row, best_uniform, differences, layers_of, make_rows
from quality.stock import load_frozen
from quality.systems import BERT, DRAWN, INHERITED, MOBILE, RANDOM, RANDOM_INHERITED, SYSTEMS
from quality.trial import LeftOut, Trial
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from elm_nni.cost.parameters import extreme_architecture, mean_parameters, parameters_outside_embeddings
from elm_nni.data.tasks import load_task
from elm_nni.errors import UserError
from elm_nni.kinds import Classification
from elm_nni.modeling import ElmForSequenceClassification
from elm_nni.pipeline.context import Context, task_spec
from elm_nni.pipeline.run_dir import config_digest
from elm_nni.pipeline.store import StageStore
from elm_nni.pipeline.supernet_stage import load_widths
from elm_nni.pipeline.teacher_stage import load_teacher_classifier, predictor
from elm_nni.search_spaces.architecture import chosen_blocks

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
QUICK = ROOT / "benchmarks" / "quality" / "quick.yaml"
COMPUTE = "uniform bert given ELM's compute"
STOCK, TEACHER, CUT, SVD = "stock BertConfig", "fine-tuned teacher", "cut teacher", "cut teacher (SVD table)"
NUM_ROWS = 853
# the quick form leaves out what is quantised as others are
# a decoder is compared with causal models alone
ENCODERS = [name for name in SYSTEMS if name != "stock GPT2Config"]
NAMES = [name for name in ENCODERS if name not in ("fine-tuned teacher (int8)", "cut teacher (SVD table, int8)")]


@dataclass(frozen=True)
class Done:
    """A comparison that was killed once and ran to its end, on validation rows."""

    out: Path
    store: Path
    plan: str
    first: str
    built: dict[Path, int]
    markdown: str
    printed: str
    told: str
    results: dict[str, Any]

    @property
    def comparison(self) -> Comparison:
        return load_comparison(QUICK, SYSTEMS)

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / name).read_text(encoding="utf-8").splitlines()]

    @property
    def trained(self) -> list[dict[str, Any]]:
        return [line for seed in range(2) for line in self.lines(f"trained-{seed}.jsonl")]

    def students(self, system: str, seed: int = 0) -> list[dict[str, Any]]:
        found = [line for line in self.trained if (line["system"], line["seed"]) == (system, seed)]
        assert len(found) == 1
        return found[0]["students"]

    def state(self, seed: int = 0, **changes: Any) -> dict[str, Any]:
        """Stages as a run directory notes them."""
        run = self.out / "runs" / config_digest(self.comparison.config(seed, changes))
        return json.loads((run / "state.json").read_text(encoding="utf-8"))["stages"]


def run_main(done_in: Path, **options: Any) -> tuple[str, str]:
    given = {"file": QUICK, "out": done_in / "out", "store": done_in / "store"}
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        command.main(**{**given, "plan": False, "test": False, **options})
    return out.getvalue(), err.getvalue()


def finished(store: Path) -> dict[Path, int]:
    """Finished stages and when they were."""
    return {path: path.stat().st_mtime_ns for path in store.glob("*/*/stage.json")}


def killed_after(lines: int, folder: Path) -> str:
    """Starts the command itself and kills it when so many systems are trained; returns its records."""
    path = folder / "out" / "trained-0.jsonl"
    arguments = ["benchmarks/quality", str(QUICK), "--out", str(folder / "out")]
    process = subprocess.Popen(
        [sys.executable, *arguments, "--store", str(folder / "store")], cwd=ROOT, stderr=subprocess.DEVNULL,
        # precision is measured for a number of threads
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )  # fmt: skip
    try:
        for _ in range(6000):
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            if text.count("\n") >= lines:
                return text
            assert process.poll() is None, f"the command ended with {process.returncode}"
            time.sleep(0.05)
        raise AssertionError("the command trained nothing in five minutes")
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("quality")
    with pytest.MonkeyPatch.context() as patch:
        plan, _ = run_main(folder, plan=True)
        assert {path.parent.parent.name for path in finished(folder / "store")} == {"precision"}
        first = killed_after(1, folder)
        built = finished(folder / "store")
        patch.setattr(Context, "test_rows", _refused)
        printed, told = run_main(folder)
    out = folder / "out"
    return Done(
        out, folder / "store", plan, first, built, (out / "results.md").read_text("utf-8"),
        printed, told, json.loads((out / "results.json").read_text("utf-8")),
    )  # fmt: skip


def _refused(*_: Any) -> None:
    raise AssertionError("test rows were asked for")


def test_the_estimate_comes_first_and_adds_up(done: Done) -> None:
    rows = [line.split() for line in done.plan.splitlines()[1:-1]]
    assert len(rows) == len(NAMES)
    for row in rows:
        seeds, left, each, total = map(float, row[-4:])
        assert seeds == left == (2 if " ".join(row[:-4]) in (FULL, BERT) else 1)
        assert total == pytest.approx(left * each, abs=0.05 * (left + 1))
    minutes = sum(float(row[-1]) for row in rows)
    assert float(re.search(r"about (\d+) minutes", done.plan).group(1)) == pytest.approx(minutes, abs=1.1)
    # the second start counts what the first one left
    assert re.search(rf"^{FULL} +2 +1 ", done.told, flags=re.MULTILINE)
    assert done.told.index("minutes in all") < done.told.index(f"seed 0, 2/{len(NAMES)} ")


def test_what_was_trained_before_the_kill_is_not_trained_again(done: Done) -> None:
    assert "seed 0, 1/" not in done.told
    assert (done.out / "trained-0.jsonl").read_text(encoding="utf-8").startswith(done.first)
    now = finished(done.store)
    assert done.built
    assert {path: now[path] for path in done.built} == done.built
    # and a third start builds, trains, times and prints nothing new
    names = ("trained-0.jsonl", "measured.jsonl", "results.md", "tfidf.jsonl")
    kept = {name: (done.out / name).read_bytes() for name in names}
    printed, told = run_main(done.out.parent)
    assert told == "every system is trained\n"
    assert {name: (done.out / name).read_bytes() for name in kept} == kept
    assert printed == done.printed == done.markdown
    assert finished(done.store) == now


def test_every_system_and_seed_has_its_students(done: Done) -> None:
    trained = done.trained
    assert [line["seed"] for line in trained] == [0] * len(NAMES) + [1] * 2
    assert {line["system"] for line in trained} == set(NAMES)
    assert all(len(line["students"]) == (2 if line["system"] in DRAWN else 1) for line in trained)
    assert len(done.results["rows"]) == len(NAMES) + 2 + 2
    assert done.results["split"] == "validation"
    assert f"Scores are of the validation rows: polarity (accuracy, {NUM_ROWS} rows)" in done.markdown
    assert (done.out / "quality.png").read_bytes().startswith(b"\x89PNG")


def test_tf_idf_stands_beside_the_systems(done: Done) -> None:
    """The score of scikit-learn on the same rows, by hand."""
    [first, second] = done.results["references"]
    task = Records(done.comparison, StageStore(done.store), done.out).trial(1).run().context.tasks["polarity"]
    train, validation = task.data.train, task.data.validation
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    made = make_pipeline(words, LogisticRegression(C=10, max_iter=1000))
    made.fit(train["text"][:], train["label"][:])
    assert len(train) == 400
    expected = made.score(validation["text"][:], validation["label"][:])
    assert (second["seed"], second["scores"]["polarity"]) == (1, pytest.approx(expected))
    assert f"For scale, without a network, {first['system']} on the same training rows" in done.markdown
    assert f"| {first['system']} | 2 | " in done.markdown


def tensor_sizes(done: Done, one: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes in the file of a student's model."""
    with safe_open(done.store / one["models"]["polarity"] / "model" / "model.safetensors", "pt") as tensors:
        return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118


def count(shapes: dict[str, tuple[int, ...]], *prefixes: str) -> int:
    return sum(int(np.prod(shape)) for name, shape in shapes.items() if name.startswith(prefixes))


def test_all_of_one_size_have_the_size_of_full_elm_counted_in_the_files_of_their_models(done: Done) -> None:
    measured = {key: one for line in done.lines("measured.jsonl") for key, one in line["students"].items()}
    for seed in range(2):
        target = None
        for line in [one for one in done.trained if one["seed"] == seed and SYSTEMS[one["system"]].sized]:
            for one in line["students"]:
                shapes, found = tensor_sizes(done, one), measured[one["key"]]
                outside = count(shapes, "elm.layers.", "encoder.")
                target = target or outside
                assert abs(outside - target) <= 0.02 * target
                assert found["params_outside_embeddings"] == outside
                assert found["params"] == count(shapes, "elm.", "encoder.", "embeddings.")
                assert found["megabytes"] == pytest.approx(4 * count(shapes, "") / 2**20, abs=0.05)
                assert found["latency_ms"] > 0


def test_the_teacher_is_fine_tuned_cut_and_quantised(done: Done) -> None:
    [line] = [line for line in done.lines("measured.jsonl") if line["seed"] == 0]
    costs = {name: line["students"][done.students(name)[0]["key"]] for name in NAMES}
    shapes = {name: tensor_sizes(done, done.students(name)[0]) for name in (STOCK, TEACHER, CUT, SVD)}
    layers = {
        name: {int(tensor.split(".")[2]) for tensor in of if tensor.startswith("encoder.layer.")}
        for name, of in shapes.items()
    }
    facts = done.students(CUT)[0]["facts"]
    times = {int(number): value for number, value in facts["layers_ms"].items()}
    assert set(times) == set(range(1, 7))
    assert facts["layers"] == min(times, key=lambda number: abs(times[number] - facts["ours_ms"]))
    assert [len(layers[name]) for name in (TEACHER, CUT, SVD)] == [6, facts["layers"], facts["layers"]]
    assert len(layers[STOCK]) == done.students(STOCK)[0]["facts"]["layers"]
    table = "embeddings.word_embeddings.weight"
    assert [shapes[name][table] for name in (TEACHER, CUT, SVD)] == [(30522, 384), (30522, 384), (30522, 128)]
    assert shapes[SVD]["embeddings.word_embeddings.projection.weight"] == (384, 128)
    for name in (FULL, CUT):
        small = costs[f"{name} (int8)"]
        assert small["params"] == costs[name]["params"]
        # a quarter of the weights, and the text of the graph
        assert 0.24 * costs[name]["megabytes"] < small["megabytes"] < 0.28 * costs[name]["megabytes"] + 0.5
        assert small["condition"].startswith("onnx-int8")
        scores = [done.students(one)[0]["validation"]["polarity"] for one in (name, f"{name} (int8)")]
        assert abs(scores[0] - scores[1]) < 0.1
    assert "Systems of a size of their own:" in done.markdown
    inputs = {
        name: json.loads((done.store / done.students(name)[0]["models"]["polarity"] / "stage.json").read_text("utf-8"))
        for name in (STOCK, TEACHER, CUT)
    }
    logits = {name: one["inputs"]["distillation"]["lambda_logit"] for name, one in inputs.items()}
    rates = {name: one["inputs"]["training"]["lr"] for name, one in inputs.items()}
    assert logits == {STOCK: 1.0, TEACHER: 0.0, CUT: 1.0}
    assert rates == {STOCK: 5e-3, TEACHER: 1e-4, CUT: 1e-4}


def test_the_teacher_as_it_is(done: Done) -> None:
    [one] = done.students("teacher")
    folder = done.store / one["models"]["polarity"] / "model"
    run = Trial(done.comparison, 0, StageStore(done.store), done.out / "runs").run()
    task = run.context.tasks["polarity"]
    logits = load_frozen("teacher", {"polarity": folder}, "cpu").logits["polarity"]
    assert task.score(task.outputs(logits, task.validation), task.validation) == one["validation"]["polarity"]
    expected = predictor(load_teacher_classifier(run.context, run.teacher().folder, "polarity"))
    batch = task.validation.batch(range(8))
    torch.testing.assert_close(logits(batch), expected(batch))
    # nothing of it is trained for the comparison
    assert set(one["seconds"]) == {"precision", "teacher"}


def test_models_without_one_output_a_row_are_left_out(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Records(done.comparison, StageStore(done.store), tmp_path).trial(0)
    trial.run().architecture()
    monkeypatch.setattr(Classification, "per_token", True)
    with pytest.raises(LeftOut, match="task polarity: it needs a linear head, or a causal head of its own"):
        SYSTEMS["teacher"].students(trial)
    monkeypatch.undo()
    monkeypatch.setattr(Classification, "linear_head", "identity")
    with pytest.raises(LeftOut, match="task polarity: a graph holds the first output of a model"):
        SYSTEMS[f"{FULL} (int8)"].students(trial)


def test_scores_and_seconds_are_those_of_the_stages(done: Done) -> None:
    shared = ["precision", "teacher"]
    search = [*shared, "latency", "supernet", "supernet_tasks", "search", "prune"]
    names = {FULL: FULL, BERT: BERT, f"{RANDOM} 1": RANDOM}
    for label, system in names.items():
        stages = done.state()
        labels = [*(search if system == FULL else shared), f"{label} pretrain", f"{label} polarity"]
        one = done.students(system)[-1]
        assert sum(one["seconds"].values()) == pytest.approx(sum(stages[name]["seconds"] for name in labels))
        scores = json.loads((Path(stages[f"{label} polarity"]["folder"]) / "scores.json").read_text("utf-8"))
        assert one["validation"] == {"polarity": scores["validation"]}
    rows = {(row["system"], row["seed"]): row for row in done.results["rows"]}
    seconds = [sum(one["seconds"].values()) for one in done.students(RANDOM)]
    values = [one["validation"]["polarity"] for one in done.students(RANDOM)]
    mean, best = rows[f"{RANDOM}, mean of 2", 0], rows[f"{RANDOM}, best of 2 by validation", 0]
    assert (mean["seconds"], best["seconds"]) == pytest.approx((sum(seconds) / 2, sum(seconds)))
    assert (mean["scores"]["polarity"], best["scores"]["polarity"]) == pytest.approx((sum(values) / 2, max(values)))


def test_tables_follow_from_the_records(done: Done) -> None:
    values = {(line["system"], line["seed"]): line["students"][0]["validation"]["polarity"]
              for line in done.trained}  # fmt: skip
    full, bert = ([values[name, seed] for seed in range(2)] for name in (FULL, BERT))
    assert len(set(values.values())) > 1
    for name, (a, b) in ((FULL, full), (BERT, bert)):
        assert f"| {name} | 2 | {(a + b) / 2:.4f} ± {abs(a - b) / 2**0.5:.4f} |" in done.markdown
    assert f"| {MOBILE} | 1 | {values[MOBILE, 0]:.4f} |" in done.markdown
    apart = [b - a for a, b in zip(full, bert, strict=True)]
    cell = f"{sum(apart) / 2:+.4f} ± {abs(apart[0] - apart[1]) / 2**0.5:.4f} [{min(apart):+.4f}, {max(apart):+.4f}]"
    assert f"| {BERT} | 2 | {cell}, {sum(x > 0 for x in apart)} and {sum(x < 0 for x in apart)} |" in done.markdown


def test_how_the_systems_differ(done: Done) -> None:
    def changes(system: str) -> dict[str, Any]:
        return done.students(system)[0]["facts"]["changes"]

    def blocks(system: str) -> list[str]:
        return chosen_blocks(done.students(system)[0]["architecture"])

    context = Trial(done.comparison, 0, StageStore(done.store), done.out / "runs").run().context
    stages = done.state()
    grown = json.loads((Path(stages["supernet"]["folder"]) / "widths.json").read_text("utf-8"))
    width = changes("no growth")["space.ffn_start"]
    small, large = (mean_parameters(dict.fromkeys(grown, width + by), context.settings) for by in (0, 1))
    assert len(set(grown.values())) > 1
    assert small <= mean_parameters(grown, context.settings) < large

    heads = [value for key, value in done.students(FULL)[0]["architecture"].items() if key.endswith("_heads")]
    kept = [value for key, value in done.students("no head step")[0]["architecture"].items() if key.endswith("_heads")]
    assert min(heads) < 12
    assert set(kept) == {12}
    assert changes("no head step")["limits.max_params_outside_embeddings"] >= done.trained[0]["target"]

    summary = json.loads((Path(stages["search"]["folder"]) / "summary.json").read_text("utf-8"))
    drawn = done.state(**changes("random search"))
    assert changes("random search")["search.strategy"] == "optuna:random"
    assert drawn["supernet"]["digest"] == stages["supernet"]["digest"]
    evaluated = json.loads((Path(drawn["search"]["folder"]) / "summary.json").read_text("utf-8"))["evaluated"]
    assert evaluated == summary["evaluated"]
    free = Path(done.state(**changes("no latency limit"))["search"]["folder"])
    free = json.loads((free / "summary.json").read_text("utf-8"))
    assert set(summary["limits"]) - set(free["limits"]) == {"latency_ms"}
    assert done.state(**changes("MSE features"))["supernet"]["digest"] != stages["supernet"]["digest"]
    assert "MSE features pretrain" in done.state(**changes("MSE features"))
    assert (set(blocks(BERT)), set(blocks(MOBILE))) == ({"bert"}, {"mobile"})

    kept = done.students(INHERITED)[0]
    pretrained = Path(done.state(**{"retrain.init": "inherit"})[f"{INHERITED} pretrain"]["folder"])
    assert kept["architecture"] == done.students(FULL)[0]["architecture"]
    inputs = json.loads((pretrained / "stage.json").read_text("utf-8"))["inputs"]
    assert inputs["inherited"] == stages["prune"]["digest"]

    for name in DRAWN:
        first, second = (one["architecture"] for one in done.students(name))
        assert first != second


def test_random_architectures_may_start_from_the_supernet(done: Done) -> None:
    stages = done.state()
    grown = json.loads((Path(stages["supernet"]["folder"]) / "widths.json").read_text("utf-8"))
    weights = load_file(Path(stages["supernet_tasks"]["folder"]) / "supernet.safetensors")
    for index, one in enumerate(done.students(RANDOM_INHERITED)):
        architecture = one["architecture"]
        widths = {key.removesuffix("_ffn"): width for key, width in architecture.items() if key.endswith("_ffn")}
        assert all(width <= grown[cell] for cell, width in widths.items())
        folder = Path(stages[f"{RANDOM_INHERITED} {index} slices"]["folder"])
        trained = Path(done.state(**{"retrain.init": "inherit"})[f"{RANDOM_INHERITED} {index} pretrain"]["folder"])
        inputs = json.loads((trained / "stage.json").read_text("utf-8"))["inputs"]
        assert inputs["inherited"] == stages[f"{RANDOM_INHERITED} {index} slices"]["digest"]
        own = load_file(folder / "pruned" / "model.safetensors")
        for layer, block in enumerate(chosen_blocks(architecture)):
            up, down = (own[f"layers.{layer}.ffn.{part}.weight"] for part in ("up", "down"))
            supernet = {part: weights[f"layers.{layer}.{block}.ffn.{part}.weight"] for part in ("up", "down")}
            assert len(up) == widths[f"layer{layer}_{block}"]
            assert torch.equal(up, supernet["up"][: len(up)])
            assert torch.equal(down, supernet["down"][:, : len(up)])
        assert set(one["seconds"]) >= {"supernet", "supernet_tasks"}
        assert "search" not in one["seconds"]


def test_the_compute_of_elm_is_turned_into_steps(done: Done) -> None:
    elm, plain, [long] = done.students(FULL)[0]["seconds"], done.students(BERT)[0]["seconds"], done.students(COMPUTE)
    own = [sum(v for k, v in one.items() if k not in ("precision", "teacher")) for one in (elm, plain)]
    factor = own[0] / own[1]
    assert long["facts"]["factor"] == pytest.approx(factor)
    assert long["facts"]["changes"] == {
        "retrain.pretrain.steps": round(5 * factor), "retrain.finetune.steps": round(8 * factor),
    }  # fmt: skip
    folder = Path(done.state(**long["facts"]["changes"])[f"{COMPUTE} pretrain"]["folder"])
    assert json.loads((folder / "stage.json").read_text("utf-8"))["inputs"]["training"]["steps"] == round(5 * factor)


def test_sizes_that_do_not_match_are_not_printed(done: Done, tmp_path: Path) -> None:
    shutil.copytree(done.out, tmp_path / "out", symlinks=True)
    lines = done.lines("measured.jsonl")
    key = done.students(MOBILE)[0]["key"]
    size = lines[0]["students"][done.students(FULL)[0]["key"]]["params_outside_embeddings"]
    for wrong, refused in ((int(1.019 * size), False), (int(1.021 * size) + 1, True), (int(0.979 * size), True)):
        lines[0]["students"][key]["params_outside_embeddings"] = wrong
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / "out" / "measured.jsonl").write_text(text, encoding="utf-8")
        (tmp_path / "out" / "results.md").unlink(missing_ok=True)
        if not refused:
            run_main(done.out.parent, out=tmp_path / "out")
            continue
        with pytest.raises(UserError, match=rf"{MOBILE}, seed 0: {wrong:,} .* but {FULL} has {size:,}; .* 2%"):
            run_main(done.out.parent, out=tmp_path / "out")
        assert not (tmp_path / "out" / "results.md").exists()


def test_test_rows_are_scored_once_and_by_the_option_alone(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(done.out, tmp_path / "out", symlinks=True)
    printed, _ = run_main(done.out.parent, out=tmp_path / "out", test=True)
    assert f"Scores are of the test rows: polarity (accuracy, {NUM_ROWS} rows)" in printed
    tested = [json.loads(line) for line in (tmp_path / "out" / "tested.jsonl").read_text("utf-8").splitlines()]
    assert len(tested) == len(NAMES) + 2 + 2
    # an independent score, row by row, from the saved model
    one = done.students(COMPUTE)[0]
    model = ElmForSequenceClassification.from_pretrained(done.store / one["models"]["polarity"] / "model").eval()
    context = Trial(done.comparison, 0, StageStore(done.store), done.out / "runs").run().context
    rows = load_task(task_spec(context.config.tasks[0]), 0).test
    right = 0
    for row in rows:
        ids = context.tokenizer(row["text"], truncation=True, max_length=16, return_tensors="pt")
        with torch.no_grad():
            right += int(model(ids["input_ids"], ids["attention_mask"]).logits.argmax()) == row["label"]
    [found] = [line["scores"] for line in tested if line["key"] == one["key"]]
    assert found == {"polarity": right / len(rows)}
    assert all(line["metrics"] == {"polarity": {"accuracy": line["scores"]["polarity"]}} for line in tested)
    # one metric needs no table of its own
    assert "All metrics of" not in printed
    assert f"| {COMPUTE} | 1 | {right / len(rows):.4f} |" in printed

    monkeypatch.setattr(Context, "test_rows", _refused)
    assert run_main(done.out.parent, out=tmp_path / "out", test=True)[0] == printed


def test_a_system_without_an_architecture_of_the_size_is_left_out_with_the_reason(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systems, "MAX_DRAWS", 20)
    kept = Records(done.comparison, StageStore(done.store), tmp_path)
    kept.trial(0).target = 100
    for name in (BERT, RANDOM):
        with pytest.raises(LeftOut):
            SYSTEMS[name].students(kept.trial(0))
    line = kept._train(BERT, kept.trial(0))
    assert line["students"] == []
    trained = [one for one in done.trained if one["system"] != BERT] + [line]
    measured = {key: one for two in done.lines("measured.jsonl") for key, one in two["students"].items()}
    records.check_sizes(trained, measured)
    results = make_results("x", trained, make_rows(trained, measured, None), measured, None)
    text = "\n".join(document(results))
    assert f"- Left out: {BERT}, seed 0: no uniform bert architecture has 100 parameters" in text
    assert f"| {BERT} |" not in text
    assert best_uniform(results.rows) == MOBILE


def test_a_process_ends_with_the_command_that_started_it() -> None:
    child = "import os, time; from quality.records import end_with; end_with(os.getppid()); print('on', flush=True)"
    parent = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    process = subprocess.Popen(
        [sys.executable, "-c", parent, f"{child}; time.sleep(100)"], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "benchmarks")},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    process.kill()
    start = time.monotonic()
    # the pipe is closed when the child ends
    assert process.stdout.read() == ""
    assert time.monotonic() - start < 20


def test_a_winner_that_cannot_be_brought_to_the_size_is_searched_again_under_it(done: Done, tmp_path: Path) -> None:
    trial = Records(done.comparison, StageStore(done.store), tmp_path).trial(0)
    run = trial.run(systems.random_search(trial))
    found, context = run.architecture(), run.context
    narrow = {key: 1 if key.endswith("_ffn") else value for key, value in found.items()}
    widths = load_widths(run.supernet().folder)
    smallest = parameters_outside_embeddings(extreme_architecture(context.settings, widths), context.settings)
    trial.target = max(round(0.95 * parameters_outside_embeddings(narrow, context.settings)), smallest)
    with pytest.raises(LeftOut):
        trial.sized(found)
    limit = systems.size_limit(trial, run)["limits.max_params_outside_embeddings"]
    assert limit == trial.target
    [student] = SYSTEMS["random search"].students(trial)
    assert student.facts["changes"]["limits.max_params_outside_embeddings"] == limit
    size = parameters_outside_embeddings(student.architecture, context.settings)
    assert abs(size - trial.target) <= 0.02 * trial.target


def row(system: str, seed: int, value: float, **changes: Any) -> Row:
    usual = Row(system, seed, {"a": value, "b": value / 2, MEAN: 0.75 * value}, value, 10, 5, 1.0, 2.0, 3.0)
    return replace(usual, **changes)


def test_all_metrics_of_a_task_have_a_table() -> None:
    def line(system: str, *values: float) -> dict[str, Any]:
        return {"system": system, "seed": 0, "students": [
            {
                "key": f"{system} {v}", "system": system, "validation": {"a": v}, "seconds": {"pretrain": 1.0},
                "models": {"a": f"finetune/{v}"}, "architecture": None, "facts": {},
            }
            for v in values
        ]}  # fmt: skip

    trained = [line(FULL, 0.5), line(RANDOM, 0.2, 0.4)]
    keys = {one["key"]: one["validation"]["a"] for of in trained for one in of["students"]}
    costs = {"params": 1, "params_outside_embeddings": 1, "megabytes": 1.0, "latency_ms": 1.0}
    tested = {key: {"scores": {"a": v}, "metrics": {"a": {"mrr": v, "recall": v / 2}}} for key, v in keys.items()}
    rows = make_rows(trained, dict.fromkeys(keys, costs), tested)
    assert metrics_table(rows, "a") == [
        "| system | seeds | mrr | recall |", "|---|---|---|---|", f"| {FULL} | 1 | 0.5000 | 0.2500 |",
        f"| {RANDOM}, mean of 2 | 1 | 0.3000 | 0.1500 |",
        f"| {RANDOM}, best of 2 by validation | 1 | 0.4000 | 0.2000 |",
    ]  # fmt: skip


def test_models_that_two_systems_share_are_told() -> None:
    """The same stages under two names: one row of the table of models, and a word beside the comparison."""
    layers = {
        f"{FULL} 0": ("mobile 48, 12 heads",) * 3 + ("bert 1, 10 heads",), f"{FULL} 1": ("mobile 48, 12 heads",),
        "no growth 0": ("bert 2, 12 heads",), "no growth 1": ("mobile 48, 12 heads",),
    }  # fmt: skip
    models = {f"{FULL} 0": ("x",), f"{FULL} 1": ("y",), "no growth 0": ("z",), "no growth 1": ("y",)}
    rows = [
        row(system, seed, value, layers=layers[f"{system} {seed}"], models=models[f"{system} {seed}"])
        for system, seed, value in ((FULL, 0, 0.5), (FULL, 1, 0.6), ("no growth", 0, 0.4), ("no growth", 1, 0.6))
    ]
    rows.append(row(f"{RANDOM}, mean of 2", 0, 0.5))
    [one] = [one for one in findings(rows) if one.against == "no growth"]
    assert (one.seeds, one.same) == (2, 1)
    assert " | 2; at 1 both are one model | " in findings_table([one])[2]
    assert layers_table(rows)[2:] == [
        f"| 0 | {FULL} | 3 x mobile 48, 12 heads; bert 1, 10 heads | 5 |",
        "| 0 | no growth | bert 2, 12 heads | 5 |",
        f"| 1 | {FULL}, no growth | mobile 48, 12 heads | 5 |",
    ]
    assert [line.split(" | ")[-1] for line in cost_table(rows)[2:]] == ["4 1 |", "1 1 |", " |"]


def test_layers_are_those_of_the_architecture_or_of_the_stock_configuration() -> None:
    found = {"layer0": "bert_kv", "layer0_bert_kv_ffn": 7, "layer0_bert_kv_heads": 3, "layer0_bert_kv_head_dim": 16}
    assert layers_of({"architecture": found, "facts": {}}) == ("bert_kv 7, 3 heads",)
    assert layers_of({"architecture": None, "facts": {"layers": 2, "ffn": 90}}) == ("stock 90", "stock 90")
    # a cut teacher keeps its own
    assert layers_of({"architecture": None, "facts": {"layers": 2}}) is None


def test_differences_are_of_the_same_seed_and_have_a_bootstrap_interval() -> None:
    ours = [0.70, 0.80, 0.90, 0.80]
    theirs = [0.68, 0.81, 0.80, 0.77]
    rows = [row(FULL, seed, value) for seed, value in enumerate([*ours, 0.1])]
    rows += [row(BERT, seed, value) for seed, value in enumerate(theirs)]
    found = {one.task: one for one in differences(rows, FULL)}
    apart = np.array(theirs) - np.array(ours)
    assert list(found) == ["a", "b", MEAN]
    one = found["a"]
    assert (one.seeds, one.higher, one.lower) == (4, 1, 3)
    assert (one.mean, one.deviation) == pytest.approx((apart.mean(), apart.std(ddof=1)))
    rng = np.random.default_rng(5)
    drawn = np.percentile(rng.choice(apart, size=(20_000, 4)).mean(axis=1), [2.5, 97.5])
    assert [one.low, one.high] == pytest.approx(drawn.tolist(), abs=3e-3)
    assert found["b"].mean == pytest.approx(one.mean / 2)


def test_findings_name_the_tasks_that_are_more_than_one_deviation_apart() -> None:
    def of(system: str, *values: tuple[float, float]) -> list[Row]:
        return [
            replace(row(system, seed, 0.5), scores={"b": b, "a": a, MEAN: (a + b) / 2})
            for seed, (a, b) in enumerate(values)
        ]

    rows = of(FULL, (0.5, 0.5), (0.6, 0.6), (0.7, 0.7)) + of(BERT, (0.4, 0.5), (0.6, 0.6), (0.55, 0.9))
    rows += of(f"{RANDOM}, mean of 2", (0.6, 0.45), (0.7, 0.54)) + of(f"{RANDOM}, best of 2 by validation", (0.0, 0.0))
    rows += of("no growth", (0.1, 0.1))
    found = {(one.system, one.against): one for one in findings(rows)}
    # one seed has no spread
    assert set(found) == {(FULL, BERT), (FULL, f"{RANDOM}, mean of 2")}
    bert, random = found.values()
    # a: 0.1, 0, 0.15, mean 0.083, deviation 0.076; b: 0, 0, -0.2, mean -0.067, deviation 0.115
    assert (bert.seeds, bert.better, bert.worse) == (3, ("a",), ())
    # a: -0.1, -0.1; b: 0.05, 0.06
    assert (random.seeds, random.better, random.worse) == (2, ("b",), ("a",))
    assert bert.mean.mean == pytest.approx((0.25 / 3 - 0.2 / 3) / 2)
    [_, _, first, _] = findings_table(list(found.values()))
    assert first.startswith(f"| the whole method | {FULL} - {BERT} | 3 | +0.0083 ± ")
    assert first.endswith("| a | none |")


def test_the_best_uniform_is_chosen_by_validation_over_seeds_that_both_have() -> None:
    rows = [row(BERT, 0, 0.1, validation=0.8), row(BERT, 1, 0.1, validation=0.1), row(MOBILE, 0, 0.9, validation=0.7)]
    assert best_uniform(rows) == BERT
    assert best_uniform([row(MOBILE, 0, 0.9), row(FULL, 0, 1.0)]) == MOBILE
    assert best_uniform([row(FULL, 0, 1.0)]) is None


def test_a_mean_of_tasks_stands_beside_several_tasks_only() -> None:
    assert quality_table([row(FULL, 0, 0.5)])[0] == f"| system | seeds | a | b | {MEAN} |"
    assert quality_table([row(FULL, 0, 0.5, scores={"a": 0.5, MEAN: 0.5})])[0] == "| system | seeds | a |"


@pytest.mark.parametrize("name", ["nano", "quick"])
def test_the_comparisons_that_come_with_it(name: str) -> None:
    comparison = load_comparison(ROOT / "benchmarks" / "quality" / f"{name}.yaml", SYSTEMS)
    assert set(comparison.systems) == set(ENCODERS if name == "nano" else NAMES)
    for system in SYSTEMS:
        assert comparison.config(0, {"distillation.features": "mse"}).retrain.init == "scratch", system
    if name == "nano":
        assert min(comparison.systems.values()) >= 3
        assert {comparison.systems[name] for name in (FULL, BERT, RANDOM)} == {5}
        assert comparison.random_architectures >= 5
        assert [task.name for task in comparison.config(0).tasks] == ["polarity", "tweets", "imdb"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1", "cannot read {file}: "),
        ("3", "{file}: expected keys and values at the top level, got int"),
        ("systms: {}", "{file}: unknown key systms; did you mean systems?"),
        ("systems: {uniform bert: 1}", "{file}: systems: {{'uniform bert': 1}} is not allowed; it must name systems"),
        ("systems: {full ELM: 1, no grwth: 1}", "{file}: unknown system no grwth; did you mean no growth?"),
        ("systems: {full ELM: 1, no growth: 2}", "{file}: systems.no growth: 2 seeds are not allowed; it must be"),
        ("systems: {full ELM: 1}\nrandom_architectures: 0", "{file}: random_architectures: 0 is not allowed; at"),
        ("systems: {full ELM: 1}\nteacher_lr: fast", "{file}: teacher_lr: 'fast' is not allowed; it must be a number"),
        ("systems: {full ELM: 1}\nchanges: [a]", "{file}: changes: ['a'] is not allowed; it must be dotted keys"),
        ("systems: {full ELM: 1}\nchanges: {retrain.init: inherit}", "retrain.init: 'inherit' is not allowed; "),
        ("systems: {full ELM: 1}\nbase: nan", "unknown preset 'nan'; did you mean nano?"),
    ],
)  # fmt: skip
def test_a_users_mistake_is_one_line(
    content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(content, encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["quality", str(file), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        run_command(command.main, "quality")
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"quality: {message.format(file=file)}")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
