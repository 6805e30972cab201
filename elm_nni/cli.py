"""The command line. Heavy imports happen inside the commands, so that ``--help`` is quick."""

from __future__ import annotations

import errno
import json
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elm_nni.compat.cli import register as register_compat
from elm_nni.errors import UserError
from elm_nni.files import is_path, local_path

if TYPE_CHECKING:
    from elm_nni.pipeline.config import Config
    from elm_nni.pipeline.runner import Run
    from elm_nni.pipeline.store import StageResult

app = typer.Typer(
    help="Elastic architecture search for compact language models. Begin with: elm-nni run nano --plan",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip
latency_app = typer.Typer(help="Latency tables.", no_args_is_help=True)
store_app = typer.Typer(help="The stage store.", no_args_is_help=True)
app.add_typer(latency_app, name="latency")
app.add_typer(store_app, name="store")
register_compat(app)

RunDir = Annotated[Path, typer.Argument(help="A run directory that `elm-nni run` made.")]
RunOrStudy = Annotated[
    Path, typer.Argument(help="A run directory that `elm-nni run` made, or the folder of a study of `elm-nni tune`.")
]
Store = Annotated[
    Path | None, typer.Option("--store", help="Where stages live. Default: ELM_NNI_STORE or the user's cache.")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show what the libraries log.")]


def main() -> None:
    """Entry point: a user's mistake is one line and exit status 2."""
    try:
        app()
    except UserError as error:
        print(f"elm-nni: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        # what a user can mend: space, rights, a read-only disk
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        print(f"elm-nni: cannot write {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        sys.exit(2)


@app.command()
def run(
    source: Annotated[str, typer.Argument(help="A preset or a YAML file.")],
    run_dir: Annotated[Path | None, typer.Option("--run-dir", help="Default: runs/NAME.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Hub name or folder of the teacher.")] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="Corpus: a local file, a hub data set or offline:NAME; may be repeated.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="A known task, a csv, jsonl, json, parquet or conll file, or a hub data set.")
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(help="Columns of such a file, such as text=review,label=stars; of pairs also text_pair=NAME."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="Kind of such a file, such as multi_label. Default: classification.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="Main metric of the task.")] = None,
    max_params: Annotated[str | None, typer.Option(help="Such as 10M.")] = None,
    max_latency_ms: Annotated[
        str | None, typer.Option(help="One limit, or several: 4,8,16 gives a model for each.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Everything random depends on it.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any key, such as growth.top_k=8.")] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show stages, hours, disk and what is cached; train nothing.")
    ] = False,
    store: Store = None,
    verbose: Verbose = False,
) -> None:
    """Run all stages; run again to resume.

    Example: elm-nni run nano --teacher ./my-bert --text corpus.txt --task reviews.csv --columns text=review,label=stars
    """
    from elm_nni.pipeline.config import load_config, parse_assignment

    overrides: dict[str, Any] = dict(parse_assignment(item) for item in set_ or [])
    given = {
        "teacher.name": teacher, "data.corpus": text or None, "limits.max_params": max_params, "seed": seed,
        "tasks": _task(task, columns, metric, kind),
    }  # fmt: skip
    overrides |= {key: value for key, value in given.items() if value is not None}
    limits = _limits(max_latency_ms)
    if len(limits) == 1:
        overrides["limits.max_latency_ms"] = limits[0]
    config = load_config(source, overrides)
    if is_path(config.teacher.name) and not local_path(config.teacher.name).is_dir():
        # told before the imports, which take a while
        raise UserError(
            f"teacher {config.teacher.name!r}: there is no such folder; --teacher names another or one of the hub, and "
            "examples/causal_teacher.py trains a causal one"
        )
    target = run_dir or Path("runs") / Path(source).stem
    if len(limits) > 1:
        for limit in limits:
            load_config(source, overrides | {"limits.max_latency_ms": limit})
    with _library(verbose):
        if plan:
            from elm_nni.pipeline.plan import make_plan

            _show(make_plan(config, _store(store)))
            return
        from elm_nni.pipeline.runner import with_latency_limit

        if len(limits) < 2:
            _finish(_open(config, target, store))
        for limit in limits if len(limits) > 1 else []:
            _finish(_open(with_latency_limit(config, limit), target / f"latency-{limit:g}ms", store))


@app.command()
def trial(
    source: Annotated[str, typer.Argument(help="A preset or a YAML file: what the experiment does not tune.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any key, the same in every trial.")] = None,
    store: Store = None,
    verbose: Verbose = False,
) -> None:
    """Run the pipeline as a trial of NNI: the trialCommand of an experiment. Keys of its search space are dotted keys.

    Example: trialCommand: OMP_NUM_THREADS=1 elm-nni trial base.yaml
    """
    from elm_nni.pipeline.config import parse_assignment

    overrides = dict(parse_assignment(item) for item in set_ or [])
    with _library(verbose):
        from elm_nni.pipeline.trial import run_trial

        result = run_trial(source, _store(store), overrides=overrides, announce=_announce)
    _say(json.dumps(result))


@app.command()
def tune(
    source: Annotated[Path, typer.Argument(help="A tuning file: base run, keys to tune, objectives.")],
    out: Annotated[Path | None, typer.Option("--dir", help="Folder of the study. Default: studies/NAME.")] = None,
    proxy: Annotated[bool, typer.Option("--proxy", help="Cheap trials, in a study of their own.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print the estimated hours and stop.")] = False,
    store: Store = None,
    verbose: Verbose = False,
) -> None:
    """Tune keys of a run with Optuna. Start it again to go on, or several times at once for more workers.

    Example: elm-nni tune examples/optuna/eta_topk.yaml
    """
    from elm_nni.tuning.tune_file import load_tuning

    tuning = load_tuning(source)
    stages, folder = _store(store), out or Path("studies") / tuning.name
    with _library(verbose):
        from elm_nni.tuning.estimate import estimate
        from elm_nni.tuning.study import TuningStudy

        _show(estimate(tuning, stages, proxy=proxy))
        if plan:
            return
        study = TuningStudy(tuning, folder, stages, proxy=proxy, announce=_say)
        study.run()
        for found in study.best():
            values = ", ".join(f"{name} {value:.4g}" for name, value in zip(tuning.objectives, found.values))
            _say(f"best: trial {found.number}, {values}: {json.dumps(found.params)}")
        from elm_nni.report import has_packages, write_study_report

        if has_packages():
            _say(f"report: {write_study_report(folder, study.url)}")
        _say(f"study {study.name} in {study.shown_url}; to look at it: optuna-dashboard {study.shown_url}")


def _stage(name: str, help_text: str, build: Callable[[Run], Any]) -> None:
    def command(run_dir: RunDir, store: Store = None, verbose: Verbose = False) -> None:
        with _library(verbose):
            build(_open(_config_of(run_dir), run_dir, store))

    app.command(name, help=f"{help_text}\n\nExample: elm-nni {name} runs/nano")(command)


_stage("supernet", "Train the supernet of a run and what it needs.", lambda run: run.supernet_tasks())
_stage("prune", "Search, then remove or fuse redundant heads of the winner.", lambda run: run.prune())
_stage("retrain", "Train the winner, after everything it needs.", lambda run: run.retrain())
_stage("evaluate", "Score the test rows and time all systems.", lambda run: run.evaluate())


@app.command()
def search(
    run_dir: RunDir,
    max_latency_ms: Annotated[str | None, typer.Option(help="One or several limits, such as 4,8,16.")] = None,
    strategy: Annotated[str | None, typer.Option(help="evolution, or a sampler of Optuna: optuna:nsgaii.")] = None,
    objectives: Annotated[
        str | None, typer.Option(help="For a sampler: metric alone, or such as metric,params,latency_ms.")
    ] = None,
    store: Store = None,
    verbose: Verbose = False,
) -> None:
    """Search the supernet of a run; several limits, or another strategy, use the same supernet.

    Example: elm-nni search runs/nano --max-latency-ms 4,8 --strategy optuna:nsgaii --objectives metric,latency_ms
    """
    config, limits = _config_of(run_dir), _limits(max_latency_ms)
    names = tuple(objectives.split(",")) if objectives is not None else None
    with _library(verbose):
        from elm_nni.pipeline.runner import with_latency_limit, with_strategy
        from elm_nni.pipeline.search_stage import winner_line

        chosen = with_strategy(config, strategy or config.search.strategy, names)
        if chosen != config:
            run_dir /= "-".join((chosen.search.strategy.replace(":", "-"), *chosen.search.objectives))
        runs = {run_dir: chosen} if not limits else {
            run_dir / f"latency-{limit:g}ms": with_latency_limit(chosen, limit) for limit in limits
        }  # fmt: skip
        for folder, one in runs.items():
            _show_winner(winner_line(_open(one, folder, store).search().folder))
            _say(f"history, Pareto front and summary: {folder / 'search'}")


@app.command()
def export(
    run_dir: RunDir,
    onnx: Annotated[bool, typer.Option("--onnx", help="Also write onnx/model.onnx, checked against PyTorch.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="With --onnx: also 8-bit weights.")] = False,
    store: Store = None,
    verbose: Verbose = False,
) -> None:
    """Write model/, a Hugging Face folder; with --onnx also ONNX files and a script that runs them without torch.

    Example: elm-nni export runs/nano --onnx --int8
    """
    if int8 and not onnx:
        raise UserError("--int8 describes the ONNX file: give --onnx too")
    with _library(verbose):
        one = _open(_config_of(run_dir), run_dir, store)
        folder = one.export(onnx=onnx or None, int8=int8 or None)
        _say(f"model: {folder}")
        for file in sorted(folder.rglob("onnx.json")):
            found = json.loads(file.read_text(encoding="utf-8"))
            _say(f"{file.parent}: largest difference from PyTorch {found['difference']:.2g}")
            if found["int8_difference"] is not None:
                _say(f"{file.parent}: largest difference of the 8-bit file {found['int8_difference']:.2g}")


@app.command()
def predict(
    run_dir: RunDir,
    out: Annotated[Path, typer.Option("--out", help="Folder of the files.")],
    store: Store = None,
    verbose: Verbose = False,
) -> None:
    """Write prediction files: of GLUE tasks those of a submission, of questions those of SQuAD's scorers.

    Example: elm-nni predict runs/glue --out submission
    """
    with _library(verbose):
        from elm_nni.pipeline.predictions import write_run_predictions

        for file in write_run_predictions(_open(_config_of(run_dir), run_dir, store), out):
            _say(str(file))


@app.command()
def report(
    folder: RunOrStudy,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Of a study: print its sweeps and proxy as Markdown instead.")
    ] = False,
) -> None:
    """Write report.html and its plots, of a run or of a study.

    Example: elm-nni report studies/eta
    """
    from elm_nni.report import STUDY_FILE, study_tables, write_report, write_study_report

    if (folder / STUDY_FILE).is_file():
        _say(study_tables(folder) if markdown else f"report: {write_study_report(folder)}")
        return
    if markdown:
        raise UserError(f"--markdown is for the folder of a study, which has a {STUDY_FILE}: {folder} has none")
    _config_of(folder)
    _say(f"report: {write_report(folder)}")


@latency_app.command("measure")
def latency_measure(
    source: Annotated[str, typer.Argument(help="A preset or a YAML file: its space and its latency condition.")],
    out: Annotated[Path, typer.Option("--out", help="The table to write.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any key, such as latency.threads=2.")] = None,
) -> None:
    """Measure a latency table on this machine, to be used here or carried to another (latency.table).

    Compiling or exporting every part takes minutes.

    Example: elm-nni latency measure nano --out phone.json --set latency.threads=2 --set latency.runtime=onnx
    """
    from elm_nni.cost.latency import measure_table
    from elm_nni.pipeline.config import load_config, parse_assignment
    from elm_nni.pipeline.context import Context, latency_condition

    config = load_config(source, dict(parse_assignment(item) for item in set_ or []))
    settings = Context(config, _store(None), lambda event, **values: None).settings
    table = measure_table(settings, latency_condition(config), repeats=config.latency.repeats)
    table.save(out)
    kept = table.notes["preempted"]["kept"]
    disturbed = f"; other work took the processor during {kept} of the timed calls" if kept else ""
    _say(f"{out}: {table.condition.describe()}, digest {table.digest}{disturbed}")


@store_app.command("ls")
def store_ls(store: Store = None) -> None:
    """List the stages in the store.

    Example: elm-nni store ls
    """
    stages = _store(store)
    for name, folder, size, finished in stages.entries():
        _say(f"{name:<15} {folder.name}  {size / 2**20:9.1f} MB  {'finished' if finished else 'unfinished'}")
    _say(f"store: {stages.root}")


@store_app.command("gc")
def store_gc(
    keep: Annotated[list[Path] | None, typer.Option("--keep", help="Run directories whose stages stay.")] = None,
    store: Store = None,
) -> None:
    """Remove the stages that no run directory named with --keep uses.

    Example: elm-nni store gc --keep runs/nano
    """
    from elm_nni.pipeline.run_dir import stage_folders

    kept = {folder for run_dir in keep or [] for folder in stage_folders(run_dir)}
    freed = _store(store).collect(kept)
    _say(f"{freed / 2**20:.1f} MB set free")


def _task(
    task: str | None, columns: str | None, metric: str | None, kind: str | None
) -> list[dict[str, Any]] | None:
    if task is None:
        if columns or metric or kind:
            raise UserError("--columns, --metric and --kind describe a task: give --task too")
        return None
    path = Path(task)
    if not path.suffix and "/" not in task:
        if columns or kind:
            raise UserError(
                f"--columns and --kind describe a file or a hub data set, but --task {task} is a known task, which has "
                "its own"
            )
        found: dict[str, Any] = {"name": task}
    else:
        found = {"name": re.sub(r"[^\w-]", "_", path.stem if path.suffix else path.name), "source": task}
    if metric is not None:
        from elm_nni.data.metrics import METRICS

        found |= {"metric": metric} | ({"kind": METRICS[metric].kind} if metric in METRICS else {})
    if kind is not None:
        found["kind"] = kind
    return [found if columns is None else found | _columns(columns, found.get("kind"))]


def _columns(columns: str, kind: str | None) -> dict[str, str]:
    from elm_nni.data.specs import parse_columns

    named = parse_columns(columns)
    allowed = {"sentence_embedding": ("text", "text_pair"), "question_answering": ()}.get(kind or "")
    if allowed is None and "label" not in named:
        raise UserError(f"--columns {columns} names no label; pairs without one are --kind sentence_embedding")
    if allowed is not None and set(named) != set(allowed):
        shown = ",".join(f"{key}=NAME" for key in allowed)
        allowed_words = f"write {shown}" if shown else "leave it out"
        raise UserError(f"--columns {columns} does not fit --kind {kind}: {allowed_words}")
    return named


def _limits(text: str | None) -> list[float]:
    if text is None:
        return []
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--max-latency-ms {text!r}: expected milliseconds, such as 8 or 4,8,16") from None


def _config_of(run_dir: Path) -> Config:
    from elm_nni.pipeline.config import load_config
    from elm_nni.pipeline.run_dir import CONFIG

    if not (run_dir / CONFIG).is_file():
        raise UserError(f"{run_dir} is not a run directory: it has no {CONFIG}; make one with elm-nni run")
    return load_config(str(run_dir / CONFIG))


def _store(path: Path | None) -> Any:
    from elm_nni.cache import default_store
    from elm_nni.pipeline.store import StageStore

    return StageStore(path or default_store())


def _open(config: Config, run_dir: Path, store: Path | None) -> Run:
    from elm_nni.pipeline.runner import Run

    return Run(config, _store(store), run_dir, _announce)


def _announce(name: str, result: StageResult) -> None:
    _say(f"  {name:<22} {'cached' if result.cached else f'{result.seconds:.1f} s'}")


def _finish(run: Run) -> None:
    from elm_nni.report import has_packages, write_report

    results = run.all()
    _show(results_lines(results, run.directory.path))
    if not run.trained:
        _say(f"All {run.num_stages} stages were finished already: nothing was trained.")
    page = run.directory.path / "report.html"
    if not has_packages():
        _say('no report was drawn: pip install "elm-nni[viz]", then elm-nni report ' + str(run.directory.path))
        return
    if run.trained or not page.exists():
        write_report(run.directory.path)
    _say(f"report: {page}")


def results_lines(results: dict[str, Any], run_dir: Path) -> list[str]:
    """The table of systems, the interval against TF-IDF and the lines that load the model."""
    from elm_nni.kinds import KINDS

    names = list(results["tasks"])
    lines = ["", f"{'system':<30}" + "".join(f"{name:>12}" for name in names) + f"{'params':>12}{'MB':>8}{'ms':>8}"]
    for row in results["systems"]:
        scores = "".join(f"{row['tasks'].get(name, float('nan')):>12.4f}" for name in names)
        params = f"{row['params']:,}" if row["params"] else "-"
        size = f"{row['megabytes']:.1f}" if row["megabytes"] else "-"
        latency = f"{row['latency_ms']:.2f}" if row["latency_ms"] else "-"
        lines.append(f"{row['name']:<30}{scores}{params:>12}{size:>8}{latency:>8}")
    lines.append(f"ms: {results['latency_ms']['condition']}; scores on the test split, " + ", ".join(
        f"{name}: {task['metric']}, n={task['n']}" for name, task in results["tasks"].items()
    ))  # fmt: skip
    for name, task in results["tasks"].items():
        # results of an older version name the main metric alone
        if len(metrics := task.get("metrics", {})) > 1:
            lines.append(f"{name}, ELM (ours): " + ", ".join(f"{key} {value:.4f}" for key, value in metrics.items()))
    found = results.get("comparison")
    if found:
        limit, measured = results["latency_ms"]["limit"], results["latency_ms"]["measured"]
        if limit is not None and measured is not None and measured > limit:
            lines.append(f"limit missed: {measured:.2f} ms measured, {limit:g} ms allowed, predicted below it")
        lines.append(
            f"ours - {found['against']} on {found['task']}: {found['difference']:+.4f}, "
            f"95 % interval [{found['low']:+.4f}, {found['high']:+.4f}] ({found['resamples']} paired resamples)"
        )
    folder = run_dir / "model" if len(names) == 1 else run_dir / "model" / names[0]
    auto_class = KINDS[results["tasks"][names[0]]["kind"]].auto_class
    lines += [
        "", f"from transformers import {auto_class}, AutoTokenizer",
        f'model = {auto_class}.from_pretrained("{folder}", trust_remote_code=True)',
        f'tokenizer = AutoTokenizer.from_pretrained("{folder}", trust_remote_code=True)', "",
    ]  # fmt: skip
    return lines


def _show(lines: list[str]) -> None:
    for line in lines:
        _say(line)


def _show_winner(line: dict[str, Any]) -> None:
    latency = "" if line["latency_ms"] is None else f", {line['latency_ms']:.2f} ms"
    _say(f"winner {line['digest']}: metric {line['metric']:.4f}, {line['params']:,} parameters{latency}")


def _say(line: str) -> None:
    typer.echo(line)


@contextmanager
def _library(verbose: bool) -> Iterator[None]:
    """Logging for people: warnings unless asked for more, without NNI's complaints about new torch classes."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    if not verbose:
        # before its level is set: importing Lightning sets it
        import pytorch_lightning  # noqa: F401

        warnings.filterwarnings("ignore", message=".*is found to be not a nn.Module.*")
        warnings.filterwarnings("ignore", module="pytorch_lightning.*")
        # it writes to the terminal by itself
        logging.getLogger("nni").propagate = False
        for name in ("nni", "pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
            logging.getLogger(name).setLevel(logging.ERROR)
        import optuna
        from transformers.utils import logging as transformers_logging

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
    yield


if __name__ == "__main__":
    main()
