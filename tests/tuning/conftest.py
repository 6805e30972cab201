"""The small run of the pipeline's tests, under a tuning file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ..pipeline.conftest import own, settings  # noqa: F401 (a fixture)


@pytest.fixture
def tuning_file(own: Path, tmp_path: Path) -> Callable[..., Path]:  # noqa: F811
    """Writes a tuning file with changes; its base is the small run."""
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(settings(own)), encoding="utf-8")

    def write(**changes: Any) -> Path:
        content = {
            "base": "base.yaml", "name": "small", "trials": 4,
            "space": {"prune.eta": {"type": "categorical", "choices": [0.3, 0.999]}},
        }  # fmt: skip
        path = tmp_path / "tuning.yaml"
        path.write_text(yaml.safe_dump({**content, **changes}, sort_keys=False), encoding="utf-8")
        return path

    return write
