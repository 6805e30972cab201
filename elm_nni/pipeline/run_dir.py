"""The run directory: resolved configuration, state, log, links into the stage store, results."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import yaml

from elm_nni.digest import digest
from elm_nni.errors import UserError
from elm_nni.files import write_text
from elm_nni.pipeline.config import Config
from elm_nni.pipeline.store import StageResult, write_json

logger = logging.getLogger(__name__)

CONFIG, STATE, LOG, RESULTS = "config.yaml", "state.json", "log.jsonl", "results.json"


class RunDirectory:
    """Opens or makes the directory of one configuration.

    Raises:
        UserError: it holds another configuration (the keys that differ are named), or cannot be written.
    """

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        self.config = config
        self.stages: dict[str, dict[str, Any]] = {}
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not os.access(path, os.W_OK):
                raise UserError(f"cannot write run directory {path}: it is read-only")
            self._claim()
        except OSError as error:
            raise UserError(f"cannot write run directory {path}: {error.strerror or error}") from error

    def log(self, event: str, **values: Any) -> None:
        """Appends one line to ``log.jsonl``."""
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, **values}
        with (self.path / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def record(self, name: str, result: StageResult, link: str | None = None) -> None:
        """Notes a finished stage in ``state.json`` and links its folder."""
        self.stages[name] = {
            "digest": result.digest, "folder": str(result.folder), "seconds": result.seconds,
            "peak_memory_mb": result.peak_memory_mb, "cached": result.cached,
        }  # fmt: skip
        write_json(self.path / STATE, {"config": config_digest(self.config), "stages": self.stages})
        if link is not None:
            self.link(link, result.folder)

    def link(self, name: str, target: Path) -> None:
        """Makes ``name`` point to ``target``, by a copy where links cannot be made."""
        place = self.path / name
        if place.is_symlink() or place.is_file():
            place.unlink()
        elif place.is_dir():
            shutil.rmtree(place)
        try:
            os.symlink(target.resolve(), place, target_is_directory=target.is_dir())
        except OSError:
            logger.info("links cannot be made in %s; copying %s", self.path, name)
            (shutil.copytree if target.is_dir() else shutil.copy2)(target, place)

    def _claim(self) -> None:
        file = self.path / CONFIG
        wanted = self.config.to_dict()
        if file.exists():
            try:
                found = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
            except (UnicodeDecodeError, yaml.YAMLError) as error:
                raise UserError(f"{file} is damaged: {' '.join(str(error).split())}") from error
            different = differences(found, wanted)
            if not different:
                self._load_stages()
            if different:
                shown = "; ".join(different[:3]) + (f"; {len(different) - 3} more" if len(different) > 3 else "")
                raise UserError(
                    f"run directory {self.path} is of another configuration ({shown}); give another --run-dir"
                )
            return
        # folders of runs for several latency limits may lie here
        if any(not entry.name.startswith((".config", "latency-")) for entry in self.path.iterdir()):
            raise UserError(f"run directory {self.path} holds other files; give an empty or new one")
        write_text(file, yaml.safe_dump(wanted, sort_keys=False))

    def _load_stages(self) -> None:
        state = self.path / STATE
        if state.exists():
            self.stages = json.loads(state.read_text(encoding="utf-8"))["stages"]


def differences(found: Any, wanted: Any, path: str = "") -> list[str]:
    """Dotted keys whose values differ, with both values."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted({*found, *wanted})
        return [line for key in keys for line in differences(found.get(key), wanted.get(key), f"{path}{key}.")]
    return [] if found == wanted else [f"{path[:-1]}: {found!r} there, {wanted!r} asked for"]


def config_digest(config: Config) -> str:
    """Names a whole configuration."""
    return digest(config.to_dict())


def stage_folders(path: Path) -> set[Path]:
    """Folders of the store that a run directory uses, those of its runs for several limits included.

    Raises:
        UserError: no finished stage is noted there.
    """
    states = [file for file in (path / STATE, *path.glob(f"latency-*/{STATE}")) if file.is_file()]
    if not states:
        raise UserError(f"{path} is not a run directory with finished stages: it has no {STATE}")
    stages = [stage for file in states for stage in json.loads(file.read_text(encoding="utf-8"))["stages"].values()]
    return {Path(stage["folder"]).resolve() for stage in stages}
