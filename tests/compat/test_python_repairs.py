"""The repairs of NNI's Python side: nothing on import, all inside the context, stock after it."""

import subprocess
import sys

import nni.experiment.launcher as launcher
import nni.tools.nnictl.launcher as nnictl_launcher
import pytest
from nni.experiment import Experiment

from elm_nni.compat import ManagerSettings, install, repaired_nni, uninstall
from elm_nni.compat.launcher import check_port
from elm_nni.compat.python_repairs import PYTHON_REPAIRS
from elm_nni.errors import UserError


def attributes():
    return [
        launcher.start_experiment, Experiment._start_nni_manager, nnictl_launcher.view_experiment,
        nnictl_launcher.resume_experiment,
    ]  # fmt: skip


STOCK = attributes()


def test_there_is_a_repair_for_each_attribute():
    assert len(PYTHON_REPAIRS) == len(STOCK)


def test_an_import_changes_nothing():
    program = (
        "import nni.experiment.launcher as launcher; stock = launcher.start_experiment\n"
        "import elm_nni.compat, elm_nni.compat.nnictl, elm_nni.compat.doctor\n"
        "from elm_nni.compat import install, repaired_nni, ManagerSettings\n"
        "assert launcher.start_experiment is stock\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_repairs_are_on_inside_the_context_alone():
    with repaired_nni():
        assert all(now is not stock for now, stock in zip(attributes(), STOCK, strict=True))
    assert attributes() == STOCK


def test_repairs_come_off_after_an_error():
    with pytest.raises(KeyError), repaired_nni():
        raise KeyError
    assert attributes() == STOCK


def test_a_context_inside_a_context_gives_back_the_outer_repairs():
    with repaired_nni(ManagerSettings(watch_seconds=1)):
        outer = attributes()
        with repaired_nni(ManagerSettings(watch_seconds=2)):
            assert launcher.start_experiment.args[0].watch_seconds == 2
        assert attributes() == outer
        assert launcher.start_experiment.args[0].watch_seconds == 1
    assert attributes() == STOCK


def test_install_twice_and_uninstall_give_back_stock():
    install()
    install(ManagerSettings(watch_seconds=3))
    assert launcher.start_experiment.args[0].watch_seconds == 3
    uninstall()
    uninstall()
    assert attributes() == STOCK


def test_trials_that_need_the_network_are_refused_on_loopback(tmp_path):
    from nni.experiment import RunMode

    from elm_nni.compat.launcher import _check_platform

    assert RunMode.Detach.value == "detach"
    for platform, reuse in (("kubeflow", False), ("remote", True)):
        with pytest.raises(UserError, match=f"trials of the platform {platform} call the manager over the network"):
            _check_platform(platform, reuse, ManagerSettings())
        _check_platform(platform, reuse, ManagerSettings(listen="0.0.0.0"))
    with pytest.raises(UserError, match="trainingService.reuseMode is true"):
        _check_platform("local", True, ManagerSettings())
    _check_platform("local", False, ManagerSettings())
    _check_platform("remote", False, ManagerSettings())


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2"])
def test_a_port_in_use_is_named_with_a_free_one(address):
    import socket

    with socket.socket() as busy:
        busy.bind((address, 0))
        busy.listen()
        port = busy.getsockname()[1]
        if address == "127.0.0.2":
            check_port(port)
            return
        with pytest.raises(UserError, match=rf"port {port} is in use; (\d+) is free: --port \1, or port=\1 in Python"):
            check_port(port)
    check_port(port)
