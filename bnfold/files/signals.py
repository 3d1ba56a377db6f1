"""Signals that ask a process to end, held back while files are being written.

Between two steps, where nothing is half done, :meth:`Held.check` ends the work; after the ``with`` the signal is
delivered to whoever handled it before. So a file is whole or not there, and no temporary file stays behind.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Held", "Interrupted"]


class Interrupted(BaseException):
    """A signal has arrived that asks the process to end."""


class Held:
    """Holds back SIGINT, SIGTERM and SIGHUP inside a ``with``; does nothing outside of the main thread."""

    def __init__(self) -> None:
        self.arrived: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Held:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)
                before = None if number is None else signal.getsignal(number)
                if number is not None and before is not None and before is not signal.SIG_IGN:
                    self._before[number] = before
                    signal.signal(number, self._note)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        for number in self.arrived[:1]:
            signal.raise_signal(number)

    def check(self) -> None:
        """Raise :class:`Interrupted` if a signal has arrived."""
        if self.arrived:
            raise Interrupted

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.arrived.append(number)
