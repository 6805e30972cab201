"""What a repaired start of the manager needs to know."""

from __future__ import annotations

from dataclasses import dataclass

from elm_nni.errors import UserError

LOOPBACK = "127.0.0.1"
ALL_INTERFACES = "0.0.0.0"  # noqa: S104


@dataclass(frozen=True)
class ManagerSettings:
    """Settings of the repaired manager.

    Attributes:
        listen: where the web UI and the command channels listen: ``127.0.0.1``, this machine alone, or ``0.0.0.0``,
            every interface. NNI has no authentication: who reaches the port can run commands.
        watch_seconds: how long a start is watched for an error of the tuner, the training service or the first trial.

    Raises:
        UserError: a value is not allowed.

    Example:
        >>> ManagerSettings(listen="0.0.0.0").listen
        '0.0.0.0'
    """

    listen: str = LOOPBACK
    watch_seconds: float = 25.0

    def __post_init__(self) -> None:
        if self.listen not in (LOOPBACK, ALL_INTERFACES):
            raise UserError(
                f"listen {self.listen!r}: expected {LOOPBACK} (this machine) or {ALL_INTERFACES} (all interfaces)"
            )
        if not 0 <= self.watch_seconds <= 600:
            raise UserError(f"watch_seconds {self.watch_seconds}: expected 0 to 600")
