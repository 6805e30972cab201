"""Everything that a run refuses before it trains: what ``run`` and ``--plan`` ask in common."""

from __future__ import annotations

from elm_nni.distillation.teacher import check_vocabulary
from elm_nni.errors import UserError
from elm_nni.kinds import CausalLM, language_kind
from elm_nni.pipeline.context import TEXT, Context
from elm_nni.pipeline.export_stage import require_onnx
from elm_nni.pipeline.search_stage import check_reachable
from elm_nni.pipeline.supernet_stage import check_growth


def check_inputs(context: Context) -> None:
    """Checks data, tasks, lengths, vocabulary, parameter limits, growth and packages; loads text and tasks.

    The latency limit needs a table and is left to :func:`elm_nni.pipeline.search_stage.check_reachable`.

    Raises:
        UserError: the first thing that is wrong.
    """
    config, settings = context.config, context.settings
    if config.limits.max_params is not None:
        check_vocabulary(settings.vocab_size, settings.embedding_size, round(config.limits.max_params))
    language = language_kind(config.distillation.objective)
    if language is not None and isinstance(language, CausalLM) != settings.is_causal:
        fitting = "distill, clm or distill+clm" if settings.is_causal else "distill, mlm or distill+mlm"
        space = "causal" if settings.is_causal else "not causal"
        raise UserError(
            f"distillation.objective: {config.distillation.objective} is not allowed; the space is {space}: it must be "
            f"{fitting}"
        )
    if config.growth.enabled:
        check_growth(config.growth.epoch_steps, config.supernet.pretrain)
    check_reachable(context, None, config.limits)
    if context.text_seed != config.seed and any(task.name == "imdb" for task in config.tasks):
        for source in config.data.corpus:
            if source in ("offline:imdb", "offline:demo"):
                raise UserError(
                    f"data.seed: {config.data.seed} is not allowed with task imdb and text {source}; it must be null, "
                    "since test rows of one seed are text of another"
                )
    _ = context.corpus
    lengths = {"data.sequence_length": config.data.sequence_length}
    lengths |= {f"max_length of task {name}": task.data.max_length for name, task in context.tasks.items()}
    longest = settings.max_position_embeddings
    for key, length in lengths.items():
        if length > longest:
            raise UserError(f"{key}: {length} is not allowed; teacher and space take at most {longest} tokens")
    for name, task in context.tasks.items():
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
        require_onnx()
        # the onnx packages are an extra
        from elm_nni.export.onnx import OUTPUTS

        for name, task in context.tasks.items():
            if task.kind.elm_class not in OUTPUTS:
                raise UserError(
                    f"export.onnx: true is not allowed with task {name}; it must be false with {task.kind.name}, which "
                    "generates with a cache that ONNX files have not"
                )
