"""A thread that repeats one piece of work until it is told to stop."""

import threading
from collections.abc import Callable

from core.logging import get_logger

log = get_logger(__name__)


class Repeating:
    """Calls ``work`` again and again: after the seconds that it returns, or as soon as ``wake()`` is called.

    An exception is logged and the work is tried again after ``after_error`` seconds: the thread never ends by itself.
    """

    def __init__(self, name: str, work: Callable[[], float], after_error: float) -> None:
        self._work = work
        self._after_error = after_error
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Work now, or once more after what is being done."""
        self._wake.set()

    def stop(self, timeout: float = 15) -> None:
        """Stop after what is being done, and wait for the thread for ``timeout`` seconds."""
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            try:
                pause = self._work()
            except Exception:
                log.exception("background_work_failed", thread=self._thread.name)
                self._stop.wait(self._after_error)
                continue
            if not self._stop.is_set():
                self._wake.wait(pause)
