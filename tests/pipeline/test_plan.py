"""What a run is estimated to take, against the same by hand."""

from pathlib import Path

import pytest

from elm_nni.pipeline.config import load_config
from elm_nni.pipeline.context import Context
from elm_nni.pipeline.plan import estimated_seconds
from elm_nni.pipeline.store import StageStore

# seconds per token: 0.02 of a student's step, 0.01 of the teacher's forward
MEASURED = {
    "student": "fp32", "teacher": "fp32", "student_seconds": {"fp32": 2.0}, "teacher_seconds": {"fp32": 1.0},
    "tokens": 100,
}  # fmt: skip
# every row of the task: [CLS], ten words, a number, [SEP]
LENGTH = 13
# of 400 rows, 80 are held out and 32 are the search's
ROWS = 288


@pytest.mark.parametrize(("lambda_feature", "on_tasks"), [(1.0, 0.03), (0.0, 0.02)])
def test_seconds_follow_from_steps_rows_and_lengths(lambda_feature, on_tasks, config_file: Path, tmp_path: Path):
    config = load_config(str(config_file), {"distillation.lambda_feature": lambda_feature})
    context = Context(config, StageStore(tmp_path), lambda *_, **__: None)
    found = {name: seconds for name, _, seconds in estimated_seconds(context, MEASURED)}
    text, rows = 8 * 8 * 16 * 0.03, 8 * 8 * LENGTH * on_tasks
    evaluations = 4 + 2 * (2 + 2)
    assert found == pytest.approx({
        "supernet": text, "teacher": ROWS * LENGTH * 0.01, "supernet_tasks": rows,
        "search (evaluations)": evaluations * 32 * LENGTH * 0.02 / 3,
        # the winner and the uniform baseline
        "retrain and baseline": 2 * text, "fine-tune and baseline": 2 * rows,
    })  # fmt: skip


def test_a_fine_tuned_teacher_takes_three_forwards_an_epoch_more(config_file: Path, tmp_path: Path):
    config = load_config(str(config_file), {"teacher.head": "finetune", "teacher.finetune_epochs": 4})
    context = Context(config, StageStore(tmp_path), lambda *_, **__: None)
    found = {name: seconds for name, _, seconds in estimated_seconds(context, MEASURED)}
    assert found["teacher"] == pytest.approx((1 + 3 * 4) * ROWS * LENGTH * 0.01)


def test_a_language_model_head_takes_a_forward_of_the_teacher_a_step(config_file: Path, tmp_path: Path):
    found = {}
    for how in ("own", "refit"):
        changes = {"tasks": ["text"], "teacher.lm_head": how, "teacher.lm_head_steps": 20}
        context = Context(load_config(str(config_file), changes), StageStore(tmp_path), lambda *_, **__: None)
        found[how] = {name: seconds for name, _, seconds in estimated_seconds(context, MEASURED)}["teacher"]
    # of 8 rows of 16 tokens
    assert found == pytest.approx({"own": 0.0, "refit": 20 * 8 * 16 * 0.01})


def test_training_rows_are_limited_and_no_others(config_file: Path, tmp_path: Path):
    contexts = []
    for limit in (None, 40):
        config = load_config(str(config_file))
        [task] = config.to_dict()["tasks"]
        config = load_config(str(config_file), {"tasks": [{**task, "limit_rows": limit}]})
        contexts.append(Context(config, StageStore(tmp_path), lambda *_, **__: None))
    [whole], [limited] = (list(context.tasks.values()) for context in contexts)
    assert len(limited.train) == 40 < len(whole.train)
    assert set(limited.data.train["text"]) < set(whole.data.train["text"])
    for part in ("search", "validation"):
        assert len(getattr(limited, part)) == len(getattr(whole, part))
    assert limited.data.test[:] == whole.data.test[:]
