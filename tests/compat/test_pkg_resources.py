"""nnictl runs where setuptools no longer ships pkg_resources, and leaves no trace of the substitute."""

import subprocess
import sys

import pytest

from elm_nni.compat.pkg_resources_substitute import ResolutionError, get_distribution

# as with setuptools 81 and later
MISSING = "import sys; sys.modules['pkg_resources'] = None\n"


def python(program):
    return subprocess.run([sys.executable, "-c", MISSING + program], capture_output=True, text=True)


def test_stock_nnictl_needs_it():
    done = python("from nni.tools.nnictl import nnictl")
    assert done.returncode != 0
    assert "pkg_resources" in done.stderr


def test_nnictl_prints_its_version_without_it():
    done = python(
        "from elm_nni.compat.nnictl import run_nnictl\nrun_nnictl(['--version'])\n"
        "assert sys.modules['pkg_resources'] is None"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "3.0"


def test_a_missing_distribution_is_the_error_that_nnictl_catches():
    with pytest.raises(ResolutionError):
        get_distribution("distribution-that-is-not-there")
