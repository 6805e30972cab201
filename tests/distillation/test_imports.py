import subprocess
import sys

import pytest

CORES = ["analysis.covariance", "analysis.pca", "analysis.cka"]
CORES += ["distillation.features", "distillation.layer_map", "distillation.losses", "distillation.packing"]
CORES += ["distillation.relational", "distillation.table", "distillation.taps"]
WITH_TRANSFORMERS = [f"distillation.{name}" for name in ("teacher", "heads", "fine_tuned")]


@pytest.mark.parametrize(
    ("modules", "blocked"),
    [
        (CORES, ["nni", "pytorch_lightning", "lightning", "transformers", "sklearn"]),
        (WITH_TRANSFORMERS, ["nni", "pytorch_lightning", "lightning"]),
    ],
)
def test_imports_without_the_frameworks(modules, blocked):
    lines = ["import sys", f"sys.modules.update(dict.fromkeys({blocked}))"]
    lines += [f"import elm_nni.{module}" for module in modules]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
