"""Files of tensors on a device: what torch.save writes, whenever the device and server work."""

from __future__ import annotations

import io
import random
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.devices import Lazy, lazy_device
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import WriteItem, WriteItemType

from torch_s3dcp.checksums import CRC64
from torch_s3dcp.file_stream import Cancelled, FileStream
from torch_s3dcp.transports.effort import Halt
from torch_s3dcp.unloading import Unloading

KIB = 1024
BLOCK = 128 * KIB


def stored(value: torch.Tensor) -> bytes:
    """What torch's own writer stores of a tensor on a device."""
    out = io.BytesIO()
    torch.save(value.detach().cpu().clone(), out)
    return out.getvalue()


def some(size: int, seed: int = 0) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=source)


class File:
    """A file of tensors, as an upload sees it."""

    def __init__(
        self,
        tensors: Iterable[torch.Tensor | io.BytesIO],
        blocks: int = 3,
        resolve: Callable[[torch.Tensor | io.BytesIO], torch.Tensor | io.BytesIO] = lambda t: t,
    ) -> None:
        self.stop = Halt()
        found = {f"w{n}": tensor for n, tensor in enumerate(tensors)}
        items = [WriteItem(MetadataIndex(name), WriteItemType.TENSOR) for name in found]
        unloading = Unloading(blocks * BLOCK, block_size=BLOCK)
        self.stream = FileStream(
            items,
            lambda item: resolve(found.pop(item.index.fqn)),
            (),
            self.stop,
            lambda _: None,
            unloading,
        )

    def uploaded(self, part_size: int, order: random.Random, threads: int = 3) -> bytes:
        """The file as it arrives in parts, each looked at as late as its release, in any order.

        As a transport may, it keeps the last part back until it has the next one.
        """
        parts: dict[int, bytes] = {}
        waiting: list[tuple[int, list[memoryview]]] = []
        lock = threading.Lock()

        def send() -> None:
            with lock:
                start, blocks = waiting.pop(order.randrange(len(waiting)))
            value = self.stream.checksum(start, blocks)
            parts[start] = b"".join(blocks)
            assert CRC64.of([memoryview(parts[start])]) == value
            del blocks  # what is released beyond the limit is let go
            self.stream.release(start, len(parts[start]))

        sent: list[Future[None]] = []
        last: list[tuple[int, list[memoryview]]] = []
        with ThreadPoolExecutor(threads) as pool:
            start = 0
            while blocks := self.stream.take(part_size):
                with lock:
                    waiting += last
                sent += [pool.submit(send) for _ in last]
                last = [(start, blocks)]
                start += sum(map(len, blocks))
            waiting += last
            sent += [pool.submit(send) for _ in last]
        for future in sent:
            future.result()
        self.stream.close()
        return b"".join(data for _, data in sorted(parts.items()))


@given(
    seed=st.integers(0, 2**32),
    sizes=st.lists(
        st.one_of(st.integers(1, 3 * BLOCK), st.integers(65 * KIB, 90 * KIB)),
        min_size=1,
        max_size=6,
    ),
    on_host=st.sets(st.integers(0, 5), max_size=2),
    blocks=st.integers(1, 4),
    part_size=st.integers(40 * KIB, 5 * BLOCK),
)
@settings(max_examples=40, deadline=None)
def test_at_whatever_times_the_device_and_the_server_work(
    seed: int, sizes: list[int], on_host: set[int], blocks: int, part_size: int
) -> None:
    values = [some(size, n) for n, size in enumerate(sizes)]
    expected = b"".join(map(stored, values))
    with lazy_device(seed) as lazy:
        tensors = [v if n in on_host else lazy.put(v) for n, v in enumerate(values)]
        file = File(tensors, blocks)
        del tensors
        assert file.uploaded(part_size, random.Random(seed)) == expected
        places = [(item.offset, item.length) for item in file.stream.written()]
        assert [expected[o : o + n] for o, n in places] == list(map(stored, values))
        pieces = [item.checksums.pieces(item.length) for item in file.stream.written()]  # type: ignore[union-attr]
        for (offset, _), found in zip(places, pieces, strict=True):
            for start, end, value in found:
                assert CRC64.of([memoryview(expected[offset + start : offset + end])]) == value
        bound = max(max(2, blocks) * BLOCK, 2 * part_size + 2 * BLOCK)
        assert lazy.module.most_pinned <= bound + BLOCK


KINDS: Mapping[str, Callable[[], torch.Tensor]] = {
    "transposed": lambda: some(300 * 400 * 4).view(torch.float32).reshape(300, 400).t(),
    "channels last": lambda: (
        torch.randn(4, 3, 100, 100).to(torch.bfloat16).to(memory_format=torch.channels_last)
    ),
    "one row": lambda: torch.randn(100_000).as_strided((1, 100_000), (7, 1)),
    "bool": lambda: some(200_000) > 100,
    "complex": lambda: torch.randn(50_000, dtype=torch.complex64),
    "float8": lambda: some(200_000).view(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_that_come_in_blocks(name: str) -> None:
    value = KINDS[name]()
    with lazy_device(1) as lazy:
        assert File([lazy.put(value)]).uploaded(BLOCK, random.Random(1)) == stored(value)
        assert lazy.module.copies > 1


VIEWS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "rows": lambda whole: whole[100:400],
    "columns": lambda whole: whole[:, 100:400],
    "expanded": lambda whole: whole[:1].expand(300, 500),
    "every other": lambda whole: whole[::2],
}


@pytest.mark.parametrize("name", VIEWS)
def test_views(name: str) -> None:
    value = torch.randn(500, 500)
    with lazy_device(1) as lazy:
        data = File([VIEWS[name](lazy.put(value))]).uploaded(BLOCK, random.Random(1))
        assert data == stored(VIEWS[name](value))
        assert (lazy.module.copies > 0) == (name == "rows")


@pytest.mark.parametrize("sizes", [(100_000,), (10,), (10, 100_000, 20)])
def test_work_that_was_queued_before_goes_first(sizes: tuple[int, ...]) -> None:
    for seed in range(8):
        with lazy_device(seed) as lazy:
            with lazy.module.stream(lazy.module.Stream()):
                tensors = [lazy.put(torch.zeros(size)) for size in sizes]
                for tensor in tensors:
                    tensor.fill_(7)
                file = File(tensors)  # here the save begins, ...
            data = file.uploaded(BLOCK, random.Random(seed))  # ... and here another stream is used
            assert data == b"".join(stored(torch.full((size,), 7.0)) for size in sizes)


def test_what_the_planner_makes_is_waited_for() -> None:
    for seed in range(8):
        with lazy_device(seed) as lazy:
            file = File([lazy.put(torch.ones(100_000))] * 2, resolve=lambda t: t.clone().add_(1))
            data = file.uploaded(BLOCK, random.Random(seed))
            assert data == stored(torch.full((100_000,), 2.0)) * 2


def test_copies_are_queued_ahead_across_tensors() -> None:
    with lazy_device(1) as lazy:
        lazy.module.eagerness = 0.0
        file = File([lazy.put(some(70 * KIB, n)) for n in range(9)], blocks=8)
        file.stream.take(1000)
        assert 3 <= lazy.module.copies <= 5
        file.stream.close()


@pytest.mark.parametrize("size", [BLOCK, 20 * BLOCK])
def test_a_part_larger_than_all_blocks_is_no_deadlock(size: int) -> None:
    value = some(40 * BLOCK)
    with lazy_device(2) as lazy:
        assert File([lazy.put(value)], blocks=2).uploaded(size, random.Random(2)) == stored(value)
        assert lazy.module.most_pinned <= 2 * size + 3 * BLOCK


def test_a_file_that_is_read_whole() -> None:
    value = some(10 * BLOCK)
    with lazy_device(2) as lazy:
        assert File([lazy.put(value)], blocks=2).stream.read() == stored(value)


def test_a_file_that_is_read_in_pieces_holds_little() -> None:
    value = some(40 * BLOCK)
    with lazy_device(2) as lazy:
        stream = File([lazy.put(value)], blocks=2).stream
        assert b"".join(iter(lambda: stream.read(BLOCK), b"")) == stored(value)
        assert lazy.module.most_pinned <= 3 * BLOCK


def ended(lazy: Lazy) -> bool:
    """Whether no copy is under way on any stream of the save's own."""
    return not any(
        stream.queue for stream in lazy.module.streams if stream is not lazy.module.current
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("taken", [0, 1, 2])
def test_an_upload_that_ends_early_waits_for_its_copies(seed: int, taken: int) -> None:
    with lazy_device(seed) as lazy:
        file = File([lazy.put(some(2 * BLOCK, n)) for n in range(4)])
        for _ in range(taken):
            file.stream.take(BLOCK)
        file.stream.close()
        assert ended(lazy)


@pytest.mark.parametrize("seed", range(6))
def test_a_planner_that_fails_midway(seed: int) -> None:
    def fails(value: Any) -> Any:
        if len(value) == 7:
            raise OSError("planned")
        return value

    with lazy_device(seed) as lazy:
        file = File([lazy.put(some(n)) for n in (90 * KIB, 80 * KIB, 7)], resolve=fails)
        with pytest.raises(OSError, match="planned"):
            file.uploaded(BLOCK, random.Random(seed))
        assert ended(lazy)


def test_a_device_that_fails_midway() -> None:
    with lazy_device(3) as lazy:
        file = File([lazy.put(some(9 * BLOCK))], blocks=2)
        file.stream.take(BLOCK)
        lazy.module.fails_after = lazy.module.copies + 1
        with pytest.raises(RuntimeError, match="device"):
            file.stream.take(8 * BLOCK)
        assert ended(lazy)


@pytest.mark.parametrize("how", ["stopped", "failed"])
def test_a_take_that_waits_ends_with_the_save(how: str) -> None:
    with lazy_device(3) as lazy, ThreadPoolExecutor(1) as pool:
        file = File([lazy.put(some(9 * BLOCK))], blocks=2)

        def take() -> list[memoryview]:
            with lazy.known():
                return file.stream.take(BLOCK)

        for _ in range(2):
            take()
        waiting = pool.submit(take)
        if how == "stopped":
            file.stop.set()
            assert isinstance(waiting.exception(timeout=60), Cancelled)
        else:
            error = OSError("planned")
            file.stream.give_up(error)
            assert waiting.exception(timeout=60) is error
        assert ended(lazy)


def test_memory_that_cannot_be_pinned() -> None:
    values = [some(5 * BLOCK, n) for n in range(2)]
    for limit in (0, BLOCK):
        with lazy_device(4, pinned_limit=limit) as lazy:
            file = File([lazy.put(value) for value in values])
            data = file.uploaded(BLOCK, random.Random(4))
            assert data == b"".join(map(stored, values))


def test_a_device_without_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    value = some(5 * BLOCK)
    with lazy_device(5) as lazy:
        tensor = lazy.put(value)
        monkeypatch.delattr("support.devices.LazyModule.Event")
        assert File([tensor]).uploaded(BLOCK, random.Random(5)) == stored(value)
        assert lazy.module.copies == 0
