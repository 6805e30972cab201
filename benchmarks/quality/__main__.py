"""Run: python benchmarks/quality benchmarks/quality/nano.yaml --out quality [--plan] [--test]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import run_command  # noqa: E402 (found through the line above)

from quality.command import main  # noqa: E402

run_command(main, "quality")
