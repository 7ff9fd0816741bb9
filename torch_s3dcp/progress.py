"""Tells whoever wants to know how far a save is, in a thread of its own.

What is told may take its time, or even save by itself: no thread of the upload waits for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from .stats import SaveProgress


class Progress:
    """Adds up what is stored. A context: at its end all was told, unless it ends with an error.

    Args:
        files: How many files there are.
        size: Their bytes, likely.
        report: Told the newest state, as often as it is ready for one; None: nobody.
    """

    def __init__(
        self, files: int, size: int, report: Callable[[SaveProgress], None] | None
    ) -> None:
        self._report = report
        self._changed = threading.Condition()
        self._done = self._complete = 0
        self._files, self._total = files, size
        self._news = self._ended = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Progress:
        if self._report is not None:
            self._thread = threading.Thread(target=self._tell, name="s3dcp-progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()
        if error is not None:
            return  # a failure does not wait for what is told
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def stored(self, count: int) -> None:
        """So many bytes more are stored, or fewer after all.

        Raises:
            BaseException: What the callback raised.
        """
        with self._changed:
            self._done += count
            self._note()

    def complete(self, expected: int, size: int) -> None:
        """A file of so many expected bytes is complete, and has that size."""
        with self._changed:
            self._total += size - expected
            self._complete += 1
            self._note()

    def _note(self) -> None:
        if self._error is not None:
            raise self._error
        self._news = True
        self._changed.notify()

    def _tell(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._news or self._ended)
                if not self._news:
                    return
                self._news = False
                total = max(self._done, self._total)
                state = SaveProgress(self._done, total, self._complete, self._files)
            try:
                if self._report is not None:
                    self._report(state)
            except BaseException as error:  # noqa: BLE001 - raised in the save
                self._error = error
                return
