"""The cores of the algorithms need neither NNI nor Lightning."""

import subprocess
import sys

import pytest

import elm_nni.strategies


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("core", ["architecture_study", "evolution", "growth", "head_pruning"])
def test_a_core_imports_with_nni_and_lightning_blocked(core: str) -> None:
    run(
        "import sys\n"
        "for name in ('nni', 'pytorch_lightning', 'lightning'):\n"
        "    sys.modules[name] = None\n"
        f"import elm_nni.strategies.{core}"
    )


def test_the_package_imports_nothing_heavy() -> None:
    run(
        "import sys, elm_nni.strategies\n"
        "heavy = {'nni', 'torch', 'pytorch_lightning', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )


def test_every_public_name_is_there() -> None:
    for name in elm_nni.strategies.__all__:
        assert getattr(elm_nni.strategies, name).__module__.startswith("elm_nni.strategies.")
    with pytest.raises(AttributeError, match="Evolutoin"):
        _ = elm_nni.strategies.Evolutoin
