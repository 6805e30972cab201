"""The page: self-contained, equal to its inputs, safe against hostile names, complete about what is missing."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from elm_nni.errors import UserError
from elm_nni.report import write_report
from elm_nni.report.load import load_run
from elm_nni.report.page import auto_class, render_page
from elm_nni.report.plots import FIGURE_NAMES

from .conftest import TINY, MakeRun, edit_results, read_json, read_lines, write_json, write_lines, write_sample_run

VOID = {"meta", "img", "br"}
SECTIONS = [
    "results", "comparison", "architecture", "growth", "budget", "evolution", "plane", "heads", "eta", "stages", "load",
]


class Page(HTMLParser):
    """Collects text, links and images, and checks that tags nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.loads: list[str] = []
        self.anchors: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.pieces: list[str] = []
        self.feed(html)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.stack.append(tag)
        for name, value in attrs:
            if name in {"src", "srcset", "data", "action", "poster"} or (name == "href" and tag != "a"):
                self.loads.append(value or "")
            elif name == "href":
                self.anchors.append(value or "")
            elif name == "id":
                self.ids.append(value or "")
            assert not name.startswith("on")

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.pieces))


def page_of(run_dir: Path) -> Page:
    return Page(render_page(load_run(run_dir), {}))


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = write_sample_run(tmp_path_factory.mktemp("reported") / "tiny", TINY)
    assert write_report(run_dir) == run_dir / "report.html"
    return run_dir


def test_page_loads_nothing(reported: Path) -> None:
    html = (reported / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert len(page.loads) == len(FIGURE_NAMES)
    assert all(load.startswith("data:image/png;base64,") for load in page.loads)
    assert set(page.tags).isdisjoint({"script", "link", "iframe", "object", "embed"})
    assert "url(" not in html
    assert "@import" not in html
    assert "http" not in re.sub(r'base64,[^"]*', "", html)


def test_anchors_lead_somewhere(reported: Path) -> None:
    page = Page((reported / "report.html").read_text(encoding="utf-8"))
    assert [anchor.removeprefix("#") for anchor in page.anchors] == SECTIONS
    assert set(SECTIONS) <= set(page.ids)
    assert "is not in the run directory" not in page.text


def test_embedded_images_are_the_png_files(reported: Path) -> None:
    page = Page((reported / "report.html").read_text(encoding="utf-8"))
    embedded = {base64.b64decode(load.partition(",")[2]) for load in page.loads}
    files = {path.stem: path.read_bytes() for path in (reported / "plots").iterdir()}
    assert set(files) == set(FIGURE_NAMES)
    assert set(files.values()) == embedded
    assert all(png.startswith(b"\x89PNG") for png in embedded)


def test_numbers_equal_the_inputs(make_run: MakeRun) -> None:
    run_dir = make_run("elm-small")
    text = page_of(run_dir).text
    results, summary = read_json(run_dir / "results.json"), read_json(run_dir / "search/summary.json")
    for system in results["systems"]:
        row = re.search(re.escape(system["name"]) + r" (?:" + re.escape(system["note"]) + r" )?"
                        r"([\d.]+) ([\d.]+ %) ([\d,]+|–) ([\d,]+|–) ([\d.]+|–) ([\d.]+|–)", text)
        assert row is not None, system["name"]
        share = system["tasks"]["polarity"] / 0.7995
        known = [system[key] for key in ("params", "params_outside_embeddings", "megabytes", "latency_ms")]
        shown = [None if cell == "–" else float(cell.replace(",", "")) for cell in row.groups()[2:]]
        assert float(row[1]) == system["tasks"]["polarity"]
        assert row[2] == f"{100 * share:.1f} %"
        assert shown == known
    assert f"digest {results['digest']}" in text
    assert "2,000 architectures evaluated, 9 duplicates skipped" in text
    assert "113 by params, 37 by latency_ms" in text
    assert f"Best: {summary['best']['digest']} of generation {summary['best']['generation']}" in text
    for one in results["comparisons"]:
        finding = "ours is ahead" if one["low"] > 0 else "ours is behind" if one["high"] < 0 else "not told apart"
        assert (f" {one['against']} polarity accuracy {one['difference']:+.4f} {one['low']:+.4f} {one['high']:+.4f} "
                f"{finding} 853 10,000 ") in text
    for line in read_lines(run_dir / "growth.jsonl"):
        assert (f" {line['epoch']} {len(line['events'])} {line['mean_params']:,.0f} {line['budget']:,} "
                f"{line['budget'] - line['mean_params']:,.0f} {line['loss']:.4f} ") in text
    for layer in read_json(run_dir / "prune/heads.json")["layers"]:
        removed = ", ".join(map(str, sorted(set(range(12)) - set(layer["kept"])))) or "none"
        kept = ", ".join(map(str, layer["kept"]))
        assert f" {layer['layer']} 12 {layer['after']} {kept} {removed} 44 44 " in text
    for name, stage in results["stages"].items():
        cached = "yes" if stage["cached"] else "no"
        assert f" {name} {stage['seconds']:.1f} {cached} {stage['peak_memory_mb']:,.0f} " in text
    assert "Seed 7. Device: cpu, 2 threads." in text
    assert "torch 2.13.0" in text


def test_hostile_strings_are_escaped(make_run: MakeRun) -> None:
    run_dir = make_run("tiny")
    evil = "<script>alert(1)</script>\"'><img src=http://evil.example/x onerror=alert(2)>{{ 7*7 }}$\\frac{"
    results = read_json(run_dir / "results.json")
    results["systems"][0]["note"] = results["systems"][2]["name"] = results["systems"][1]["condition"] = evil
    results["comparisons"][0]["against"] = results["comparisons"][1]["metric"] = evil
    results["latency_ms"]["condition"] = evil
    edit_results(run_dir, **results | {"device": evil, "digest": evil, "versions": {evil: evil}, "stages": {
        evil: {"seconds": 1.0}}, "tasks": {evil: {"metric": evil, "value": 0.5, "split": evil, "n": 3}}})
    summary = read_json(run_dir / "search/summary.json")
    summary["best"]["digest"] = summary["best"]["origin"] = evil
    summary["rejected"] = {evil: 3}
    write_json(run_dir / "search/summary.json", summary)
    growth = read_lines(run_dir / "growth.jsonl")
    growth[0]["events"][0]["cell"] = f"layer0_{evil}"
    write_lines(run_dir / "growth.jsonl", growth)
    history = read_lines(run_dir / "search/history.jsonl")
    history[0]["origin"] = evil
    write_lines(run_dir / "search/history.jsonl", history)
    page = Page(write_report(run_dir).read_text(encoding="utf-8"))
    assert set(page.tags).isdisjoint({"script"})
    assert all(load.startswith("data:image/png") for load in page.loads)
    assert evil in "".join(page.pieces)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("results.json", "there is no headline"),
        ("results.json", "There is no results table"),
        ("results.json", "There is no bootstrap comparison"),
        ("results.json", "There is no architecture to draw"),
        ("results.json", "Times and memory are unknown"),
        ("growth.jsonl", "There are no growth scores"),
        ("growth.jsonl", "There is no budget to show"),
        ("search/history.jsonl", "There is no progress to draw"),
        ("search/summary.json", "rejected and duplicate counts are unknown"),
        ("prune/heads.json", "Heads were not compared"),
        ("prune/heads.json", "There is no sweep"),
        ("model/config.json", "model/config.json is not in the run directory"),
    ],
)
def test_a_missing_file_is_told(make_run: MakeRun, name: str, sentence: str) -> None:
    run_dir = make_run()
    assert sentence not in page_of(run_dir).text
    (run_dir / name).unlink()
    assert sentence in page_of(run_dir).text


def test_missing_candidates_and_matrices_are_told(make_run: MakeRun) -> None:
    run_dir = make_run()
    for name in ("search/history.jsonl", "search/pareto.json", "prune/cka.npz"):
        (run_dir / name).unlink()
    text = page_of(run_dir).text
    assert "There is no plane to draw" in text
    assert "There are no matrices to draw" in text


def test_run_without_growth_pruning_and_baselines(make_run: MakeRun) -> None:
    run_dir = make_run("tiny")
    write_lines(run_dir / "growth.jsonl", [line | {"events": []} for line in read_lines(run_dir / "growth.jsonl")])
    heads = read_json(run_dir / "prune/heads.json")
    for layer in heads["layers"]:
        layer |= {"after": 4, "kept": list(range(4)), "redundant": []}
    write_json(run_dir / "prune/heads.json", heads)
    names = [f"layer{i}_{when}" for i in range(2) for when in ("before", "after")]
    np.savez(run_dir / "prune/cka.npz", **{name: np.eye(4) for name in names})
    history = [line for line in read_lines(run_dir / "search/history.jsonl") if line["generation"] == 0]
    write_lines(run_dir / "search/history.jsonl", [line | {"latency_ms": None} for line in history])
    edit_results(run_dir, systems=read_json(run_dir / "results.json")["systems"][:1], comparison={}, comparisons=[],
                 latency_ms={})
    text = Page(write_report(run_dir).read_text(encoding="utf-8")).text
    assert "No cell grew in 2 epochs" in text
    assert "no head was taken away in any of 2 layers" in text
    assert "no share of a teacher is known" in text
    assert "latency measured – ms" in text
    assert "There is no bootstrap comparison" in text


def test_a_loss_is_said_plainly(make_run: MakeRun) -> None:
    run_dir = make_run()
    comparison = read_json(run_dir / "results.json")["comparison"]
    edit_results(run_dir, comparisons=[comparison | {"difference": -0.02, "low": -0.03, "high": -0.01}])
    text = page_of(run_dir).text
    assert "-0.0200 -0.0300 -0.0100 ours is behind" in text
    assert "but is behind TF-IDF + logistic regression." in text
    assert "✗ Behind TF-IDF + logistic regression on polarity" in text


def test_limits_that_rejected_nothing_are_left_out(make_run: MakeRun) -> None:
    run_dir = make_run()
    summary = read_json(run_dir / "search/summary.json")
    for rejected, words in (({"params": 0, "latency_ms": 3}, "evaluation: 3 by latency_ms."),
                            ({"params": 0}, "none rejected."), ({}, "none rejected.")):
        write_json(run_dir / "search/summary.json", summary | {"rejected": rejected})
        assert words in page_of(run_dir).text


def test_a_small_lead_is_no_win(make_run: MakeRun) -> None:
    run_dir = make_run()
    comparison = read_json(run_dir / "results.json")["comparison"]
    edit_results(run_dir, comparison=comparison | {"difference": 0.007, "low": -0.0199, "high": 0.034},
                 comparisons=None)
    text = page_of(run_dir).text
    assert "· Not told apart from TF-IDF + logistic regression on polarity" in text
    assert "[-0.0199, +0.0340] includes zero." in text
    assert "Beats" not in text
    assert "Ahead" not in text


def test_same_files_same_report_and_no_stale_figures(make_run: MakeRun) -> None:
    run_dir = make_run("tiny")
    for name in ("growth.jsonl", "search/history.jsonl", "search/pareto.json", "prune/heads.json"):
        (run_dir / name).unlink()
    first = write_report(run_dir).read_bytes()
    assert write_report(run_dir).read_bytes() == first
    assert {path.name for path in (run_dir / "plots").iterdir()} == {"architecture.png", "comparison.png", "stages.png"}
    edit_results(run_dir, comparison=None, comparisons=None)
    write_report(run_dir)
    assert {path.name for path in (run_dir / "plots").iterdir()} == {"architecture.png", "stages.png"}


def test_unwritable_run_directory(make_run: MakeRun) -> None:
    run_dir = make_run()
    (run_dir / "plots").write_text("a file in the way")
    with pytest.raises(UserError, match="cannot write the report"):
        write_report(run_dir)


@pytest.mark.parametrize(
    ("model_class", "expected"),
    [
        ("ElmForSequenceClassification", "AutoModelForSequenceClassification"),
        ("ElmForMaskedLM", "AutoModelForMaskedLM"),
        ("ElmForQuestionAnswering", "AutoModelForQuestionAnswering"),
        ("ElmModel", "AutoModel"),
        (None, "AutoModel"),
    ],
)
def test_auto_class(model_class: str | None, expected: str) -> None:
    assert auto_class(model_class) == expected


def test_loading_lines_are_python(make_run: MakeRun) -> None:
    run_dir = make_run()
    lines = "".join(page_of(run_dir).pieces).rpartition("Load the model\n")[2].strip()
    compile(lines, "lines", "exec")
    folder = repr(f"{run_dir.as_posix()}/model")
    assert f"AutoModelForSequenceClassification.from_pretrained({folder}, trust_remote_code=True)" in lines


def test_every_metric_is_shown_where_there_are_several(make_run: MakeRun) -> None:
    run_dir = make_run()
    assert "Every metric" not in page_of(run_dir).text
    systems = read_json(run_dir / "results.json")["systems"]
    for index, system in enumerate(systems[:2]):
        system["metrics"] = {"polarity": {"accuracy": 0.5 + index, "perplexity": 12.25 + index}}
    edit_results(run_dir, systems=systems)
    text = page_of(run_dir).text
    assert "Every metric of polarity system accuracy perplexity" in text
    for index, system in enumerate(systems[:2]):
        assert f"{system['name']} {0.5 + index:.4f} {12.25 + index:.4f}" in text
    assert f"{systems[2]['name']} – –" in text
