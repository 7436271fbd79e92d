"""Ctrl-C and SIGTERM: both stop a sweep, and neither in the midst of what is kept."""

from collections.abc import Callable, Iterator
import contextlib
import signal
import threading
from typing import Any


# What each does where nobody has said anything else.
USUAL: dict[signal.Signals, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}


def _is_heard_here() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Both wait to the end: what stands inside is not cut in two."""
    if not _is_heard_here():
        yield
        return
    waiting: list[int] = []
    handlers = {s: h for s in USUAL if (h := signal.getsignal(s)) is not None}
    for number in handlers:
        signal.signal(number, lambda number, _: waiting.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if waiting:
            signal.raise_signal(waiting[0])


@contextlib.contextmanager
def heard() -> Iterator[Callable[[], None]]:
    """Both raise KeyboardInterrupt; where a program handles one itself, it still does.

    Gives a function that raises what Python has dropped: where a signal falls into a
    callback of the garbage collector, as jax has, its exception is lost.
    """
    ours = [s for s, usual in USUAL.items() if signal.getsignal(s) == usual]
    if not _is_heard_here() or not ours:
        yield lambda: None
        return
    numbers: list[int] = []

    def stop(number, _):
        numbers.append(number)
        raise KeyboardInterrupt

    def check():
        if numbers:
            raise KeyboardInterrupt

    for number in ours:
        signal.signal(number, stop)
    try:
        yield check
    finally:
        for number in ours:
            if signal.getsignal(number) is stop:
                signal.signal(number, USUAL[number])
