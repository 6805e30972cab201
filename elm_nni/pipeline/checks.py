"""Everything that a run refuses before it trains: what ``run`` and ``--plan`` ask in common."""

from __future__ import annotations

from elm_nni.errors import UserError
from elm_nni.kinds import CausalLM, language_kind
from elm_nni.pipeline.context import TEXT, Context
from elm_nni.pipeline.export_stage import require_onnx
from elm_nni.pipeline.search_stage import check_reachable
from elm_nni.pipeline.supernet_stage import check_growth


def check_inputs(context: Context) -> None:
    """Checks teacher, tasks, lengths, parameter limits, growth, packages and text, what takes longest last.

    The latency limit needs a table and is left to :func:`elm_nni.pipeline.search_stage.check_reachable`.

    Raises:
        UserError: the first thing that is wrong.
    """
    config, settings = context.config, context.settings
    _check_objective(context)
    if config.growth.enabled:
        check_growth(config.growth, config.supernet.pretrain, settings)
    check_reachable(context, None, config.limits)
    if context.text_seed != config.seed and any(task.name == "imdb" for task in config.tasks):
        for source in config.data.corpus:
            if source in ("offline:imdb", "offline:demo"):
                raise UserError(
                    f"data.seed: {config.data.seed} is not allowed with task imdb and text {source}; it must be null, "
                    "since test rows of one seed are text of another"
                )
    if config.export.onnx:
        require_onnx()
    _check_length(context, "data.sequence_length", config.data.sequence_length)
    _check_tasks(context)
    _ = context.corpus


def _check_objective(context: Context) -> None:
    config, is_causal = context.config, context.settings.is_causal
    language = language_kind(config.distillation.objective)
    if language is not None and isinstance(language, CausalLM) != is_causal:
        fitting = "distill, clm or distill+clm" if is_causal else "distill, mlm or distill+mlm"
        space = "causal" if is_causal else "not causal"
        raise UserError(
            f"distillation.objective: {config.distillation.objective} is not allowed; the space is {space}: it must be "
            f"{fitting}"
        )
    predicts = language is not None or any(task.name == TEXT for task in config.tasks)
    if is_causal and predicts and context.teacher.reads_ahead():
        raise UserError(
            f"teacher.name: {config.teacher.name!r} is not allowed where next tokens are predicted; it must be a "
            "causal model, since this one reads the tokens that follow"
        )


def _check_length(context: Context, key: str, length: int) -> None:
    longest = context.settings.max_position_embeddings
    if length > longest:
        raise UserError(f"{key}: {length} is not allowed; teacher and space take at most {longest} tokens")


def _check_tasks(context: Context) -> None:
    config = context.config
    for name, task in context.tasks.items():
        _check_length(context, f"max_length of task {name}", task.data.max_length)
        if config.teacher.head == "linear" and task.kind.linear_head is None and name != TEXT:
            raise UserError(
                f"teacher.head: linear is not allowed with task {name}; it must be finetune or a folder, since no "
                f"linear head can teach {task.kind.name}"
            )
        if task.kind.linear_head == "identity" and config.teacher.head != "linear":
            raise UserError(
                f"teacher.head: {config.teacher.head} is not allowed with task {name}; it must be linear, since the "
                "embeddings of a teacher are its own"
            )
    if config.export.onnx:
        # the onnx packages are an extra
        from elm_nni.export.onnx import OUTPUTS

        for name, task in context.tasks.items():
            if task.kind.elm_class not in OUTPUTS:
                raise UserError(
                    f"export.onnx: true is not allowed with task {name}; it must be false with {task.kind.name}, which "
                    "generates with a cache that ONNX files have not"
                )
