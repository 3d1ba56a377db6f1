"""A limit on the time of an export with free sizes.

``torch.export`` computes sizes as formulas. For some networks (mobilevitv2: patches of patches of a rounded size) the
formulas grow until sympy works on them for longer than anybody waits; an export at one size takes seconds.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

__all__ = ["SECONDS", "OverBudgetError", "within"]

SECONDS = 90.0
"""Of CPU time. The networks of a zoo that can be exported with free sizes at all take up to a half of it."""


class OverBudgetError(BaseException):
    """The time is up. Not an ``Exception``: torch catches those on its way."""


@contextlib.contextmanager
def within(seconds: float = SECONDS) -> Iterator[None]:
    """Raise once the process has computed for this long; without effect outside of the main thread.

    Raises:
        OverBudgetError: the time is up.
    """
    can = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    if not can or signal.getitimer(signal.ITIMER_PROF)[0]:  # a profiler of the user's own
        yield
        return

    def over(_number: int, _frame: object) -> None:
        raise OverBudgetError

    before = signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
