"""The benchmarks are scripts beside each other, as they find each other when one of them is started."""

import sys
from pathlib import Path

from ..pipeline.conftest import own, settings  # noqa: F401 (a fixture)

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
