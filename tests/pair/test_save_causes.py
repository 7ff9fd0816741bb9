"""Saves that fail for other reasons than the network: they too are all or nothing."""

from __future__ import annotations

import gc
import io
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support.dcp import Place, assert_same, blank, failures, open_uploads, randn
from support.proxy import Fault, FaultProxy, Request
from support.transports import Tap
from torch.distributed.checkpoint._extension import StreamTransformExtension
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import WriteItem

MIB = 1024**2
ITEMS = 8
CAUSES = [ZeroDivisionError("a mistake"), MemoryError("no room"), KeyboardInterrupt("stop")]


def model(seed: int, size: int = 100) -> dict[str, torch.Tensor]:
    return {f"x{i}": randn(size, seed=100 * seed + i) for i in range(ITEMS)}


def raised_by(action: Callable[[], Any]) -> BaseException:
    with pytest.raises(CheckpointException) as caught:
        action()
    (error,) = failures(caught.value)
    return error


class Untouched:
    """A checkpoint that the saves of a test must leave as it is, and the only one there."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.state = model(1)
        place.save(self.state, "run", thread_count=2)
        self._listing = place.listing()

    def check(self) -> None:
        assert self.place.listing() == self._listing
        assert_same(self.place.load(blank(self.state), "run"), self.state)


class FailingPlanner(dcp.DefaultSavePlanner):
    """Fails when it is asked for so many items: counted from 0, over all threads."""

    def __init__(self, number: int, error: BaseException) -> None:
        super().__init__()
        self._left = number
        self._error = error

    def resolve_data(self, write_item: WriteItem) -> Any:
        self._left -= 1
        if self._left == -1:
            raise self._error
        return super().resolve_data(write_item)


@pytest.mark.parametrize("threads", [1, 2, 4, 8])
@pytest.mark.parametrize("error", CAUSES, ids=lambda error: type(error).__name__)
def test_a_planner_that_fails_at_any_item(
    memory: Place, threads: int, error: BaseException
) -> None:
    old, tap = Untouched(memory), Tap(memory.transport)
    for number in range(ITEMS):
        planner = FailingPlanner(number, error)
        assert error is raised_by(
            lambda: memory.over(tap).save(model(2), "run", planner, thread_count=threads)  # noqa: B023
        )
        old.check()
    assert not tap.of("put")


@pytest.mark.server
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("error", CAUSES[1:], ids=lambda error: type(error).__name__)
def test_a_planner_that_fails_amid_multipart_uploads(
    on_seaweed: Place, threads: int, error: BaseException
) -> None:
    old = Untouched(on_seaweed)
    planner = FailingPlanner(ITEMS - 1, error)  # parts of the items before are on their way
    large = model(2, size=2 * MIB)
    assert error is raised_by(lambda: on_seaweed.save(large, "run", planner, thread_count=threads))
    assert not open_uploads(on_seaweed)
    old.check()


class FailingExtension(StreamTransformExtension):
    """Fails in one of its steps, at the item of a number."""

    def __init__(self, step: str, number: int) -> None:
        self.step = step
        self._left = number
        self._lock = threading.Lock()

    @staticmethod
    def registry_name() -> str:
        return "test.failing"

    @staticmethod
    def from_descriptor(version: str) -> FailingExtension:
        raise NotImplementedError

    def get_descriptor(self) -> str:
        return "test.failing/1"

    def transform_to(self, output: Any) -> Any:
        with self._lock:
            self._left -= 1
            mine = self._left == -1
        if mine and self.step == "begin":
            raise ZeroDivisionError("begin")
        return _FailingOutput(output, self.step if mine else None)

    def transform_from(self, input: Any) -> Any:
        raise NotImplementedError


class _FailingOutput(io.RawIOBase):
    def __init__(self, output: Any, step: str | None) -> None:
        self._output = output
        self._step = step

    def writable(self) -> bool:
        return True

    def write(self, block: Any, /) -> int:
        if self._step == "write":
            raise ZeroDivisionError("write")
        written: int = self._output.write(block)
        return written

    def close(self) -> None:
        if not self.closed:
            super().close()
            if self._step == "close":
                raise ZeroDivisionError("close")
            self._output.close()


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("step", ["begin", "write", "close"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_extension_that_fails_at_any_item(memory: Place, threads: int, step: str) -> None:
    old, tap = Untouched(memory), Tap(memory.transport)
    for number in range(ITEMS):
        options = {"_extensions": [FailingExtension(step, number)], "thread_count": threads}
        error = raised_by(lambda: memory.over(tap).save(model(2), "run", **options))  # noqa: B023
        assert isinstance(error, ZeroDivisionError)
        assert str(error) == step
        old.check()
    assert not tap.of("put")


@pytest.fixture
def interruptible() -> Iterator[Callable[[], None]]:
    """Interrupts this thread as Ctrl-C would, from any other one."""
    assert threading.current_thread() is threading.main_thread()
    main = threading.main_thread().ident
    assert main is not None
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    # hypothesis listens to the collector, and in such a callback an interrupt gets lost.
    gc.disable()
    yield lambda: signal.pthread_kill(main, signal.SIGINT)
    gc.enable()
    signal.signal(signal.SIGINT, before)


@pytest.mark.server
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("operation", ["UploadPart", "CompleteMultipartUpload"])
def test_an_interrupt_while_uploads_run(
    on_seaweed: Place,
    proxy: FaultProxy,
    interruptible: Callable[[], None],
    threads: int,
    operation: str,
) -> None:
    old, sent = Untouched(on_seaweed), []

    def interrupt(request: Request) -> Fault | None:
        if request.operation != operation or request.part not in (None, 2) or sent:
            return None
        sent.append(request)
        interruptible()
        # A completion that arrives after the clean-up would leave an object behind.
        return Fault.CUT if operation == "CompleteMultipartUpload" else None

    proxy.judge = interrupt
    large = model(2, size=2 * MIB)
    place = proxy.before(on_seaweed)
    error = raised_by(lambda: place.save(large, "run", thread_count=threads))
    assert sent
    assert isinstance(error, KeyboardInterrupt)
    assert not open_uploads(on_seaweed)
    old.check()
