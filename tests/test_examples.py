"""The examples do what they say."""

import runpy
from pathlib import Path

from elm_nni.pipeline.config import load_config

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_own_data_is_a_configuration():
    config = load_config(str(EXAMPLES / "own_data.yaml"))
    assert (config.teacher.name, config.tasks[0].source, config.limits.max_params) == ("./my-bert", "reviews.csv", 6e6)


def test_growth_goes_to_the_rich_layer():
    widths = runpy.run_path(str(EXAMPLES / "grow_own_module.py"))["main"]()
    assert widths["rich"] >= 20
    assert widths["simple"] <= 8
    assert sum(widths.values()) <= 28
