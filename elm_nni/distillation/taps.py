"""Read tensors inside a model by the path of the module, without changing the model."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from torch import Tensor, nn


class Taps:
    """Collects outputs (and inputs) of submodules at every forward, between ``attach`` and ``remove``.

    Hooks are registered once, when the taps are attached, and all are gone after ``remove`` or at the end of the
    ``with`` block, an error in it included. Tensors keep their graph, so losses on them reach the model.
    A module that no forward ran (a candidate that was not chosen) has no tensor.

    Args:
        model: any module.
        outputs: name -> dotted path of the module whose output is read; of a tuple or list the first item.
        inputs: name -> dotted path of the module whose first positional input is read.

    Raises:
        ValueError: a path the model does not have (the nearest is named), or a name that is used twice.

    Example::

        with Taps(model, {"first": "encoder.layer.0"}) as taps:
            model(input_ids)
            hidden_BTD = taps["first"]
    """

    def __init__(
        self, model: nn.Module, outputs: Mapping[str, str] | None = None, *, inputs: Mapping[str, str] | None = None
    ) -> None:
        outputs, inputs = dict(outputs or {}), dict(inputs or {})
        if twice := outputs.keys() & inputs.keys():
            raise ValueError(f"tap names {sorted(twice)}: each name must be used once")
        self._outputs = {name: _module_at(model, path) for name, path in outputs.items()}
        self._inputs = {name: _module_at(model, path) for name, path in inputs.items()}
        self._handles: list[Any] = []
        self._records: dict[str, list[Tensor]] = {}

    def attach(self) -> Taps:
        """Start to collect; a second call changes nothing."""
        if not self._handles:
            for name, module in self._outputs.items():
                self._handles.append(module.register_forward_hook(self._output_hook(name)))
            for name, module in self._inputs.items():
                self._handles.append(module.register_forward_pre_hook(self._input_hook(name), with_kwargs=True))
        return self

    def remove(self) -> None:
        """Take every hook off again; what was collected stays."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Taps:
        return self.attach()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def __getitem__(self, name: str) -> Tensor:
        """The tensor of the latest forward.

        Raises:
            KeyError: no forward since the last ``clear`` ran that module.
        """
        return self._records[name][-1]

    def all(self, name: str) -> list[Tensor]:
        """The tensors of all forwards since the last ``clear``, oldest first; empty if there was none."""
        return list(self._records.get(name, []))

    def clear(self) -> None:
        """Forget what was collected: call it once a step, or memory grows with every forward."""
        self._records.clear()

    def _output_hook(self, name: str) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._records.setdefault(name, []).append(output[0] if isinstance(output, (tuple, list)) else output)

        return record

    def _input_hook(self, name: str) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._records.setdefault(name, []).append(args[0] if args else next(iter(kwargs.values())))

        return record


def _module_at(model: nn.Module, path: str) -> nn.Module:
    modules = dict(model.named_modules(remove_duplicate=False))
    if path not in modules:
        nearest = difflib.get_close_matches(path, modules, n=1)
        hint = f"; the nearest is {nearest[0]!r}" if nearest else ""
        raise ValueError(f"tap path {path!r}: {type(model).__name__} has no such module{hint}")
    return modules[path]
