"""PCA growth as a callback of any Lightning trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from elm_nni.strategies.growth import GrowthRecord, PcaGrowth


class GrowthCallback(Callback):
    """Watches training batches and grows at the end of every n-th epoch; its state is part of the checkpoint.

    Only training is observed: the hooks stand during a training batch and nowhere else, so validation leaves no trace.
    Growth happens before Lightning's checkpoint callbacks run, so a checkpoint of an epoch holds its grown widths.

    Args:
        growth: the growth, or a function of the Lightning module that makes it when training starts, for cells that do
            not exist before (those of a space that a one-shot strategy will mutate).
        every_n_epochs: grow at the end of every so many epochs.
        mask_key: key of the batch, a mapping, under which a mask (B, T) lies: zero is padding (``document_ids`` of
            packed rows serve too). None for batches without padding.
        on_record: called with the :class:`~elm_nni.strategies.growth.GrowthRecord` of each growth.

    Raises:
        ValueError: a setting outside its range; from training, a batch without ``mask_key``.

    Example::

        def growth(module):
            return PcaGrowth(module.model.cells(), top_k=4, budget=5.6e6, cost=mean_parameters)

        Trainer(max_epochs=10, callbacks=[GrowthCallback(growth)])
    """

    def __init__(
        self,
        growth: PcaGrowth | Callable[[LightningModule], PcaGrowth],
        every_n_epochs: int = 1,
        mask_key: str | None = "attention_mask",
        on_record: Callable[[GrowthRecord], None] | None = None,
    ) -> None:
        if not isinstance(growth, PcaGrowth) and not callable(growth):
            raise ValueError(f"growth must be a PcaGrowth or a function that makes one, got {growth!r}")
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be >= 1, got {every_n_epochs!r}")
        if on_record is not None and not callable(on_record):
            raise ValueError(f"on_record must be callable or None, got {on_record!r}")
        self._given = growth
        self._growth = growth if isinstance(growth, PcaGrowth) else None
        self.every_n_epochs, self.mask_key, self.on_record = every_n_epochs, mask_key, on_record
        self._watching = ExitStack()

    @property
    def growth(self) -> PcaGrowth:
        """The growth.

        Raises:
            RuntimeError: it is made when training starts, and training has not started.
        """
        if self._growth is None:
            raise RuntimeError("the growth does not exist before training starts")
        return self._growth

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._growth is None:
            assert not isinstance(self._given, PcaGrowth)
            self._growth = self._given(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.growth.set_mask(None if self.mask_key is None else self._mask(batch, self.mask_key))
        self._watching.enter_context(self.growth.watch())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._watching.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._watching.close()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        self.growth.step()
        if self.on_record is not None:
            self.on_record(self.growth.history[-1])

    def state_dict(self) -> dict[str, Any]:
        return {} if self._growth is None else self._growth.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict:
            self.growth.load_state_dict(state_dict)

    @staticmethod
    def _mask(batch: Any, key: str) -> Any:
        if not isinstance(batch, Mapping) or key not in batch:
            held = f"keys {sorted(batch)}" if isinstance(batch, Mapping) else type(batch).__name__
            raise ValueError(f"mask_key={key!r}: the batch holds {held}; name a key it has, or None without padding")
        return batch[key]
