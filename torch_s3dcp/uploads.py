"""Uploading a rank's files: several at a time, all or nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from io import BytesIO

import torch
from torch.distributed.checkpoint.planner import SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from ._torch import StreamTransformExtension
from .checkpoint_metadata import CHECKSUMS
from .exceptions import BucketNotFoundError, S3DCPError, StorageError
from .file_stream import Cancelled, FileStream
from .items import descriptors_of
from .stats import SaveProgress, SaveStats
from .transports import Transport, Uploaded
from .unloading import Unloading
from .uri import S3URI
from .written import FileNote, results_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileUpload:
    """One object to write: its path below the checkpoint, its items, its likely size."""

    path: str
    items: Sequence[WriteItem]
    expected_size: int


class _Progress:
    """Adds up what is stored, and tells whoever wants to know."""

    def __init__(
        self, files: Sequence[FileUpload], report: Callable[[SaveProgress], None] | None
    ) -> None:
        self._report = report
        self._lock = threading.Lock()
        self._done = self._complete = 0
        self._files = len(files)
        self._total = sum(file.expected_size for file in files)

    def stored(self, count: int) -> None:
        """So many bytes more are stored."""
        with self._lock:
            self._done += count
            self._tell()

    def complete(self, file: FileUpload, size: int) -> None:
        """A file is complete, and has that size."""
        with self._lock:
            self._total += size - file.expected_size
            self._complete += 1
            self._tell()

    def _tell(self) -> None:
        if self._report is not None:
            total = max(self._done, self._total)
            self._report(SaveProgress(self._done, total, self._complete, self._files))


def upload_files(
    transport: Transport,
    base: S3URI,
    files: Sequence[FileUpload],
    planner: SavePlanner,
    extensions: Sequence[StreamTransformExtension],
    thread_count: int,
    report: Callable[[SaveProgress], None] | None = None,
    *,
    memory_budget: int,
) -> tuple[list[WriteResult], SaveStats]:
    """Write all files, ``thread_count`` at a time; return where each item lies.

    Data of tensors on devices waits in ``memory_budget`` bytes, over all files.

    Raises:
        BaseException: The first failure. The other uploads are given up and what was
            uploaded is removed before it is raised.
    """
    begin = time.perf_counter()
    # Planners are not thread-safe. The lock covers the look-up of a tensor, never I/O.
    planning, stop = threading.Lock(), threading.Event()
    progress = _Progress(files, report)
    # In this thread: its streams are those that the copies come after.
    unloading = Unloading(memory_budget // max(1, min(thread_count, len(files))))
    results: dict[str, list[WriteResult]] = {}
    uploads: list[Uploaded] = []

    def resolve(item: WriteItem) -> torch.Tensor | BytesIO:
        with planning:
            data: torch.Tensor | BytesIO = planner.resolve_data(item)
        return data

    def upload(file: FileUpload) -> None:
        stream = FileStream(file.items, resolve, extensions, stop, progress.stored, unloading)
        key = base.join(file.path).key
        try:
            done = transport.upload(base.bucket, key, stream, expected_size=file.expected_size)
            _check_size(base, key, stream.position, done.size)
            progress.complete(file, done.size)
        except BaseException:
            stop.set()
            raise
        finally:
            stream.close()
        note = FileNote(str(base), done.size)
        written = stream.written()
        results[file.path] = results_of(file.path, written, note, descriptors_of(extensions))
        uploads.append(done)

    try:
        _in_parallel(upload, files, thread_count, stop)
    except BaseException:
        _remove(transport, base, [file.path for file in files])
        raise
    found = [result for file in files for result in results[file.path]]
    stats = SaveStats(
        files=len(files),
        items=len(found),
        unverifiable_items=sum(not hasattr(r.storage_data, CHECKSUMS) for r in found),
        bytes_stored=sum(done.size for done in uploads),
        data_requests=sum(done.requests for done in uploads),
        retries=sum(done.retries for done in uploads),
        upload_seconds=time.perf_counter() - begin,
    )
    return found, stats


def _check_size(base: S3URI, key: str, sent: int, stored: int) -> None:
    if sent != stored:
        raise StorageError(
            f"of {sent} bytes {stored} were stored; save again", bucket=base.bucket, key=key
        )


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
    real = [error for error in failures if not isinstance(error, Cancelled)]
    for other in real[1:]:
        _log.error("another upload of this save failed too: %s", other)
    if failures:
        raise (real or failures)[0]


def _remove(transport: Transport, base: S3URI, paths: Sequence[str]) -> None:
    try:
        transport.delete(base.bucket, [base.join(path).key for path in paths])
    except BucketNotFoundError:
        _log.debug("no bucket, so nothing stays behind at %s", base)
    except S3DCPError as error:
        _log.error("objects of a failed save stay behind at %s: %s", base, error)
