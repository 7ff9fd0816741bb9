"""A device that does its work as late as it may, on machines that have none.

A model of what streams, events and memory promise, no more: a queued copy runs at a random
later time, or when somebody waits for it; streams are independent but for events. A copy from
pinned memory reads what is there when it runs. Memory that is freed before a copy of another
stream runs is found out. Its tensors are of device type "lazy", of which torch brings little more
than the name; their values are in ordinary memory.

Each thread has a current stream of its own, at first the device's default one.
"""

from __future__ import annotations

import ctypes
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("lazy", 0)
aten = torch.ops.aten
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

Access = Callable[[], torch.Tensor | None]


class LazyStream:
    """A queue. What is queued runs in order, when forced to or by chance."""

    def __init__(self, module: LazyModule) -> None:
        self.module = module
        self.speed = module.random.choice([0.0, 0.2, 1.0])
        self.queue: deque[Callable[[], None] | tuple[LazyStream, int]] = deque()
        self.queued = self.done = 0

    def push(self, work: Callable[[], None] | tuple[LazyStream, int]) -> None:
        with self.module.lock:
            self.queue.append(work)
            self.queued += 1
            self.module.drift()

    def wait_event(self, event: LazyEvent) -> None:
        if event.stream is not None:
            self.push((event.stream, event.position))

    def synchronize(self) -> None:
        self.reach(self.queued)

    def reach(self, position: int) -> None:
        """Run no more than it takes."""
        with self.module.lock:
            while self.done < position:
                self.step()

    def ready(self) -> bool:
        if not self.queue:
            return False
        head = self.queue[0]
        return not isinstance(head, tuple) or head[0].done >= head[1]

    def step(self) -> None:
        head = self.queue.popleft()
        if isinstance(head, tuple):
            head[0].reach(head[1])
        else:
            with self.module.stopped():
                head()
        self.done += 1


class LazyEvent:
    """A position in a stream."""

    def __init__(self, module: LazyModule) -> None:
        self.module = module
        self.stream: LazyStream | None = None
        self.position = 0

    def record(self, stream: LazyStream) -> None:
        with self.module.lock:
            self.stream, self.position = stream, stream.queued
            self.module.drift()

    def query(self) -> bool:
        with self.module.lock:
            self.module.drift()
        return self.stream is None or self.stream.done >= self.position

    def synchronize(self) -> None:
        if self.stream is not None:
            self.stream.reach(self.position)


class LazyModule:
    """Stands where ``torch.cuda`` stands for CUDA.

    Args:
        seed: Of the times at which work is done.
        pinned_limit: Bytes that can be pinned.
    """

    def __init__(self, seed: int, pinned_limit: int = 2**40) -> None:
        self.random = random.Random(seed)
        self.lock = threading.RLock()
        self.eagerness = self.random.choice([0.0, 0.3, 0.6, 0.9])
        self.pinned_limit = pinned_limit
        self.working = False
        self.streams: list[LazyStream] = []
        self.default = self.Stream()
        self._here = threading.local()
        #: What went wrong on the device.
        self.faults: list[str] = []
        #: Copies from or to pinned memory that were queued.
        self.copies = 0
        #: Copies that should not have blocked, but first had to be packed on the host.
        self.packed = 0
        #: After so many of these copies the device is broken.
        self.fails_after = 2**60
        #: Bytes that were pinned at the same time, at most.
        self.most_pinned = 0

    @property
    def current(self) -> LazyStream:
        """The current stream of this thread."""
        found: LazyStream = getattr(self._here, "stream", self.default)
        return found

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def Stream(self, device: torch.device = DEVICE) -> LazyStream:
        assert device == DEVICE
        self.streams.append(LazyStream(self))
        return self.streams[-1]

    def Event(self) -> LazyEvent:
        return LazyEvent(self)

    @contextmanager
    def stream(self, stream: LazyStream) -> Iterator[None]:
        before, self._here.stream = self.current, stream
        try:
            yield
        finally:
            self._here.stream = before

    def current_stream(self, device: torch.device = DEVICE) -> LazyStream:
        assert device == DEVICE
        return self.current

    def drift(self) -> None:
        """Time passes."""
        while not self.working and self.random.random() < self.eagerness:
            ready = [stream for stream in self.streams if stream.ready()]
            if not ready:
                break
            chosen = self.random.choice(ready)
            if self.random.random() < chosen.speed:
                chosen.step()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Time stands still: a piece of work is done at once or not at all."""
        before, self.working = self.working, True
        try:
            yield
        finally:
            self.working = before

    def synchronize(self) -> None:
        for stream in self.streams:
            stream.synchronize()


class LazyTensor(torch.Tensor):
    """A tensor of the device. ``home`` is the stream on which its memory may be used again."""

    inner: torch.Tensor
    home: LazyStream

    @staticmethod
    def __new__(cls, inner: torch.Tensor, home: LazyStream) -> LazyTensor:
        made = torch.Tensor._make_wrapper_subclass(  # the documented way to make wrappers
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        made.inner, made.home = inner, home
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"LazyTensor({tuple(self.size())}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} outside of the device")


class LazyDevice(TorchDispatchMode):
    """While it is entered, torch knows the device. To be made by each thread for itself."""

    def __init__(self, module: LazyModule, pinned: dict[int, tuple[StorageWeakRef, int]]) -> None:
        super().__init__()
        self.module = module
        self.pinned = pinned

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self.module.lock:
            return self.dispatch(func, args, kwargs or {})

    def dispatch(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        self.module.drift()
        if func is aten.empty.memory_format:
            return self.empty(args, kwargs)
        if not any(isinstance(arg, LazyTensor) for arg in args):
            return func(*args, **kwargs)
        if func is aten.copy_.default:
            return self.copy(*args, **kwargs)
        if func.is_view:
            (first, *rest) = args
            return LazyTensor(func(first.inner, *rest, **kwargs), first.home)
        return self.compute(func, args, kwargs)

    def empty(self, args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        if kwargs.get("pin_memory"):
            if kwargs.get("device") == DEVICE:
                raise RuntimeError("only ordinary memory can be pinned")
            made = self.garbage(torch.empty(*args, dtype=kwargs["dtype"]))
            alive = [size for ref, size in self.pinned.values() if not ref.expired()]
            if sum(alive) + made.nbytes > self.module.pinned_limit:
                raise RuntimeError("no more memory can be pinned")
            self.module.most_pinned = max(self.module.most_pinned, sum(alive) + made.nbytes)
            reference = StorageWeakRef(made.untyped_storage())
            self.pinned[made.untyped_storage().data_ptr()] = (reference, made.nbytes)
            return made
        if kwargs.get("device") == DEVICE:
            made = self.garbage(torch.empty(*args, dtype=kwargs["dtype"]))
            return LazyTensor(made, self.module.current)
        return torch.empty(*args, **kwargs)

    def garbage(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel():
            tensor.view(torch.uint8).fill_(self.module.random.randrange(256))
        return tensor

    def copy(
        self, target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False
    ) -> torch.Tensor:
        stream = self.module.current
        if not isinstance(target, LazyTensor):
            assert isinstance(source, LazyTensor)
            write = self.pinned_memory(target) if non_blocking else None
            if write is None:
                stream.synchronize()
                return target.copy_(source.inner)
        else:
            write = self.reach(target, stream)
        read = self.read(source, stream, non_blocking)
        on_device = isinstance(source, LazyTensor)

        def work() -> None:
            into, values = write(), read()
            if into is not None and values is not None:
                into.copy_(values)

        stream.push(work)
        if not on_device and not non_blocking:
            stream.synchronize()
        return target

    def read(self, source: torch.Tensor, stream: LazyStream, non_blocking: bool) -> Access:
        if isinstance(source, LazyTensor):
            return self.reach(source, stream)
        pinned = self.pinned_memory(source)
        if pinned is None:
            self.module.packed += non_blocking
            packed = source.clone()  # the driver, or torch, stages it before the call returns
            return lambda: packed
        return pinned

    def pinned_memory(self, tensor: torch.Tensor) -> Access | None:
        """Memory that the device reads and writes by itself, when it gets to it."""
        reference, _ = self.pinned.get(tensor.untyped_storage().data_ptr(), (None, 0))
        if reference is None or reference.expired() or not tensor.is_contiguous():
            return None
        if self.module.copies >= self.module.fails_after:
            raise RuntimeError("the device is broken")
        self.module.copies += 1
        return self.weak(tensor, "pinned memory")

    def reach(self, tensor: LazyTensor, stream: LazyStream) -> Access:
        """Memory is safe on the stream that it belongs to, and must be kept for others."""
        inner = tensor.inner
        return (lambda: inner) if tensor.home is stream else self.weak(inner, "device memory")

    def weak(self, tensor: torch.Tensor, what: str) -> Access:
        storage, dtype = tensor.untyped_storage(), tensor.dtype
        reference, address = StorageWeakRef(storage), storage.data_ptr()
        usable = storage.nbytes() // dtype.itemsize * dtype.itemsize
        size, strides, offset = tensor.size(), tensor.stride(), tensor.storage_offset()

        def access() -> torch.Tensor | None:
            if reference.expired():
                self.module.faults.append(f"{what} was freed before a copy of {tuple(size)}")
                return None
            whole = (ctypes.c_uint8 * usable).from_address(address)
            flat = torch.frombuffer(whole, dtype=torch.uint8).view(dtype)
            return flat.as_strided(size, strides, offset)

        return access

    def compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        stream, first = self.module.current, args[0]
        if func is aten.is_pinned.default:
            return False
        if func in (aten.fill_.Scalar, aten.zero_.default, aten.add_.Tensor):
            reach = self.reach(first, stream)

            def work() -> None:
                into = reach()
                if into is not None:
                    func(into, *args[1:], **kwargs)

            stream.push(work)
            return first
        if func is aten.clone.default:
            made = LazyTensor(self.garbage(torch.empty_like(first.inner)), stream)
            self.copy(made, first)
            return made
        if func is aten._to_copy.default and kwargs["device"].type == "cpu":
            stream.synchronize()
            return func(first.inner, **kwargs)
        raise NotImplementedError(str(func))


class Lazy:
    """The device as tests use it."""

    device = DEVICE

    def __init__(self, module: LazyModule) -> None:
        self.module = module
        self._pinned: dict[int, tuple[StorageWeakRef, int]] = {}

    def known(self) -> LazyDevice:
        """While it is entered, torch knows the device in this thread."""
        return LazyDevice(self.module, self._pinned)

    def put(self, values: torch.Tensor) -> torch.Tensor:
        """A tensor on the device with the values and strides of another."""
        whole = torch.empty_strided(values.size(), values.stride(), dtype=values.dtype)
        return LazyTensor(whole.copy_(values), self.module.current)

    def see(self, tensor: torch.Tensor) -> torch.Tensor:
        """What is in the device's memory now, whatever is still queued."""
        assert isinstance(tensor, LazyTensor)
        return tensor.inner.clone()

    def keep_busy(self) -> None:
        """Nothing to do: this device takes its time anyway."""


@contextmanager
def lazy_device(seed: int, **options: Any) -> Iterator[Lazy]:
    """Makes the device known to torch. At the end nothing may have gone wrong on it."""
    module = LazyModule(seed, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, DEVICE.type, module, raising=False)
        patch.setattr(torch.accelerator, "current_accelerator", lambda: DEVICE)
        patch.setattr("torch_s3dcp.unloading.PLAIN_TYPES", (LazyTensor,))
        torch.get_device_module.cache_clear()
        try:
            lazy = Lazy(module)
            with lazy.known():
                yield lazy
                module.synchronize()
        finally:
            torch.get_device_module.cache_clear()
    assert module.faults == []


class Cuda:
    """The first CUDA device, used the same way."""

    device = torch.device("cuda", 0)
    module = torch.cuda

    def put(self, values: torch.Tensor) -> torch.Tensor:
        whole = torch.empty_strided(
            values.size(), values.stride(), dtype=values.dtype, device=self.device
        )
        whole.copy_(values)
        torch.cuda.synchronize()
        return whole

    def see(self, tensor: torch.Tensor) -> torch.Tensor:
        with torch.cuda.stream(torch.cuda.Stream()):
            return tensor.cpu()

    def known(self) -> nullcontext[None]:
        """Nothing to do: every thread knows it."""
        return nullcontext()

    def keep_busy(self) -> None:
        """Queue work that takes far longer than queueing what comes next."""
        values = torch.ones(4096, 4096, device=self.device)
        for _ in range(200):
            values = values @ values
