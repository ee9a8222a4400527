"""Stopping in good order: the first signal asks for a checkpoint, a Ctrl-C after it ends the process at once."""

from __future__ import annotations

import logging
import signal
from types import FrameType, TracebackType
from typing import Self

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""What schedulers and keyboards send."""


class Interrupt:
    """While entered, notes the first SIGTERM or SIGINT in `asked` instead of dying of it.

    Ranks may be signalled at different steps, or only some of them: what this rank was asked must be agreed with the
    others (`Topology.any`) before it is acted upon.
    """

    def __init__(self) -> None:
        self.asked = False
        self._previous: dict[int, signal.Handlers] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._note)  # type: ignore[assignment]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        # A scheduler and a launcher may both pass one SIGTERM on: the second must not cost the checkpoint.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # The kernel's own handling, which ends the process even inside a hanging collective.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        name = signal.Signals(number).name
        logger.warning("%s: stopping after this step, with a checkpoint. Ctrl-C from now ends at once, without.", name)
