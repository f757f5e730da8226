"""Stopping a run between steps when a scheduler (SIGTERM) or a person (Ctrl-C) asks for it."""

from __future__ import annotations

import signal
import threading
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """While entered, the first signal is recorded in `signal` (else 0) and ends nothing.

    A scheduler may send SIGTERM more than once, to the launcher and to every process; a second
    Ctrl-C is impatience and ends the process at once. Ignored signals stay ignored. Threads other
    than the main one receive no signals and record none.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: object) -> None:
        if number == self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        # Received in the last step of a base policy: the training around it must know.
        outer = getattr(self._before.get(self.signal), "__self__", None)
        if isinstance(outer, StopRequest):
            outer.signal = self.signal
