"""``elm-nni nnictl``: NNI's own command line with the repaired manager."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from elm_nni.compat.pkg_resources_substitute import pkg_resources_available
from elm_nni.compat.python_repairs import install
from elm_nni.compat.settings import ALL_INTERFACES, LOOPBACK, ManagerSettings
from elm_nni.errors import UserError
from elm_nni.files import read_settings

_STARTS = ("create", "resume", "view")
OPEN_WARNING = (
    f"warning: the manager listens on {ALL_INTERFACES} and NNI has no authentication: whoever reaches the port can run "
    "commands as you"
)


def run_nnictl(arguments: Sequence[str]) -> None:
    """Runs nnictl in this process; all arguments are nnictl's but ``--listen ADDRESS`` of create, resume and view.

    Raises:
        UserError: the configuration is wrong, or the experiment cannot start.
        SystemExit: as nnictl exits.

    Example:
        >>> run_nnictl(["experiment", "list"])  # doctest: +SKIP
    """
    listen, rest = split_listen(arguments)
    install(ManagerSettings(listen=listen))
    if listen != LOOPBACK:
        print(OPEN_WARNING, file=sys.stderr)
    with pkg_resources_available():
        from nni.tools.nnictl import launcher, nnictl
    # nnictl took these names when it was imported
    stock = (nnictl.create_experiment, nnictl.resume_experiment, nnictl.view_experiment)
    nnictl.create_experiment = _checked_create(stock[0])
    nnictl.resume_experiment, nnictl.view_experiment = launcher.resume_experiment, launcher.view_experiment
    before = sys.argv
    sys.argv = ["nnictl", *rest]
    try:
        nnictl.parse_args()
    finally:
        sys.argv = before
        nnictl.create_experiment, nnictl.resume_experiment, nnictl.view_experiment = stock


def split_listen(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """``--listen`` and the other arguments, which stay as they are.

    Raises:
        UserError: ``--listen`` has no value or stands with another command than create, resume and view.
    """
    rest: list[str] = []
    listen = None
    words = iter(arguments)
    for word in words:
        if word == "--listen":
            listen = next(words, None)
            if listen is None:
                raise UserError(f"--listen needs an address: {LOOPBACK} or {ALL_INTERFACES}")
        elif word.startswith("--listen="):
            listen = word.partition("=")[2]
        else:
            rest.append(word)
    if listen is not None and (not rest or rest[0] not in _STARTS):
        raise UserError(f"--listen belongs to {', '.join(_STARTS)}, not to {rest[0] if rest else 'nothing'}")
    return listen or LOOPBACK, rest


def _checked_create(stock: Any) -> Any:
    def create(args: argparse.Namespace) -> None:
        check_config(Path(args.config))
        stock(args)

    return create


def check_config(path: Path) -> None:
    """Reads an experiment's YAML as NNI will; files of NNI 1 are left to nnictl.

    Raises:
        UserError: the file is missing, a key or value is wrong, or the tuner or assessor is not known.
    """
    from nni.experiment.config import ExperimentConfig, utils

    content = read_settings(path)
    if "trainingServicePlatform" in content:
        return
    _check_keys(path, content)
    try:
        config = ExperimentConfig.load(path).canonical_copy()
    except (AttributeError, ValueError, TypeError, AssertionError, OSError) as error:
        utils.unset_base_path()
        raise UserError(f"{path}: {' '.join(str(error).split()) or 'a value is out of its range'}") from error
    for kind in ("tuner", "assessor"):
        _check_algorithm(path, kind, getattr(config, kind, None))


def _check_keys(path: Path, content: dict[str, Any]) -> None:
    import dataclasses

    from nni.experiment.config import ExperimentConfig, utils

    known = {utils.camel_case(field.name) for field in dataclasses.fields(ExperimentConfig)}
    plain = {utils.case_insensitive(key) for key in known}
    for key in content:
        if utils.case_insensitive(key) not in plain:
            near = difflib.get_close_matches(key, known, 1)
            raise UserError(f"{path}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def _check_algorithm(path: Path, kind: str, algorithm: Any) -> None:
    from nni.tools.package_utils import get_algo_meta, get_all_algo_meta

    if algorithm is None or not algorithm.name or get_algo_meta(algorithm.name) is not None:
        return
    known = sorted(meta.name for meta in get_all_algo_meta() if meta.algo_type == kind)
    raise UserError(f"{path}: {kind} {algorithm.name!r} is not known; known: {', '.join(known)}")
