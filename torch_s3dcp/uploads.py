"""Uploading a rank's files: items become bytes while they are sent."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.distributed.checkpoint.planner import SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from ._torch import StorageInfo, StreamTransformExtension
from .exceptions import BucketNotFoundError, S3DCPError
from .items import descriptors_of, serialize_bytes, serialize_tensor, to_stored_form
from .segments import SegmentStream
from .transports import Transport
from .uri import S3URI

_log = logging.getLogger(__name__)

# Travels with each result to the coordinator, which compares it and takes it off again.
_ADDRESS = "s3dcp_address"


@dataclass
class FileUpload:
    """One object to write: its path below the checkpoint, its items, its likely size."""

    path: str
    items: Sequence[WriteItem]
    expected_size: int
    results: list[WriteResult] = field(default_factory=list)


class _Cancelled(Exception):
    """Another file failed; this one need not be finished."""


class _StoppableStream(SegmentStream):
    """Ends with an error as soon as another file of the save has failed."""

    def __init__(self, blocks: Iterator[memoryview], stop: threading.Event) -> None:
        super().__init__(blocks)
        self._stop = stop

    def read(self, size: int | None = -1, /) -> bytes:
        if self._stop.is_set():
            raise _Cancelled
        return super().read(size)

    def take(self, size: int) -> list[memoryview]:
        if self._stop.is_set():
            raise _Cancelled
        return super().take(size)


def take_address(place: Any, base: S3URI) -> str | None:
    """Take back the note of where an item was uploaded; return it where it is not ``base``."""
    noted: str | None = place.__dict__.pop(_ADDRESS, None)
    return None if noted in (None, str(base)) else noted


def upload_files(
    transport: Transport,
    base: S3URI,
    files: Sequence[FileUpload],
    planner: SavePlanner,
    extensions: Sequence[StreamTransformExtension],
    thread_count: int,
) -> list[WriteResult]:
    """Write all files, ``thread_count`` at a time; return where each item lies.

    Raises:
        BaseException: The first failure. The other uploads are given up and what was
            uploaded is removed before it is raised.
    """
    # Planners are not thread-safe. The lock covers the look-up of a tensor, never I/O.
    planning, stop = threading.Lock(), threading.Event()

    def upload(file: FileUpload) -> None:
        blocks = _blocks(file, base, planner, planning, extensions)
        stream = _StoppableStream(blocks, stop)
        key = base.join(file.path).key
        try:
            transport.upload(base.bucket, key, stream, expected_size=file.expected_size)
        except BaseException:
            stop.set()
            raise

    try:
        _in_parallel(upload, files, thread_count, stop)
    except BaseException:
        _remove(transport, base, [file.path for file in files])
        raise
    return [result for file in files for result in file.results]


def _in_parallel(
    upload: Callable[[FileUpload], None],
    files: Sequence[FileUpload],
    thread_count: int,
    stop: threading.Event,
) -> None:
    if len(files) <= 1:
        for file in files:
            upload(file)
        return
    with ThreadPoolExecutor(min(thread_count, len(files)), "s3dcp-save") as pool:
        futures = [pool.submit(upload, file) for file in files]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        except BaseException:
            stop.set()  # interrupted: the others end at their next read
            raise
        for future in futures:
            future.cancel()
    errors = [f.exception() for f in futures if not f.cancelled()]
    failures = [error for error in errors if error is not None]
    real = [error for error in failures if not isinstance(error, _Cancelled)]
    for other in real[1:]:
        _log.error("another upload of this save failed too: %s", other)
    if failures:
        raise (real or failures)[0]


def _blocks(
    file: FileUpload,
    base: S3URI,
    planner: SavePlanner,
    planning: threading.Lock,
    extensions: Sequence[StreamTransformExtension],
) -> Iterator[memoryview]:
    """The bytes of a file, one item at a time; notes where each item came to lie."""
    offset = 0
    for item in file.items:
        with planning:
            data = planner.resolve_data(item)
        try:
            if isinstance(data, torch.Tensor):
                blocks = serialize_tensor(to_stored_form(data), extensions)
            else:
                blocks = serialize_bytes(data.getbuffer(), extensions)
        except S3DCPError as error:
            raise error.locate(tensor=item.index.fqn) from error
        length = sum(len(block) for block in blocks)
        place = StorageInfo(file.path, offset, length, descriptors_of(extensions))
        setattr(place, _ADDRESS, str(base))
        file.results.append(WriteResult(item.index, length, place))
        offset += length
        yield from blocks


def _remove(transport: Transport, base: S3URI, paths: Sequence[str]) -> None:
    try:
        transport.delete(base.bucket, [base.join(path).key for path in paths])
    except BucketNotFoundError:
        _log.debug("no bucket, so nothing stays behind at %s", base)
    except S3DCPError as error:
        _log.error("objects of a failed save stay behind at %s: %s", base, error)
