"""Uploading a rank's files: several at a time, all or nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import cast

import torch
from torch.distributed.checkpoint.planner import SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from ._torch import StreamTransformExtension
from .checkpoint_metadata import CHECKSUMS
from .delta import Earlier, PlannedFile
from .exceptions import BucketNotFoundError, EndpointError, S3DCPError, StorageError
from .file_stream import Cancelled, FileStream
from .files import FileUpload
from .items import descriptors_of
from .progress import Progress
from .stats import SaveProgress, SaveStats
from .transports import Composes, Transport, Uploaded
from .transports.effort import Halt, halted_by
from .unloading import Unloading
from .uri import S3URI
from .written import FileNote, results_of

_log = logging.getLogger(__name__)


@dataclass
class Uploads:
    """The uploads of one rank in one save; ``run`` does them.

    Args:
        transport: Does the requests.
        base: Address of the checkpoint.
        planner: Gives the tensors.
        extensions: Transformations of the stored bytes.
        thread_count: Files that are written at the same time.
        report: Told how far it is.
        earlier: A checkpoint whose bytes may be used again.
        memory_budget: Bytes in which data of tensors on devices waits, over all files.
    """

    transport: Transport
    base: S3URI
    planner: SavePlanner
    extensions: Sequence[StreamTransformExtension] = ()
    thread_count: int = 1
    report: Callable[[SaveProgress], None] | None = None
    earlier: Earlier | None = None
    memory_budget: int = 256 * 1024 * 1024
    # Planners are not thread-safe. The lock covers the look-up of a tensor, never I/O.
    _planning: threading.Lock = field(default_factory=threading.Lock)
    _stop: Halt = field(default_factory=Halt)

    def run(self, files: Sequence[FileUpload]) -> tuple[list[WriteResult], SaveStats]:
        """Write all files; return where each item lies.

        Raises:
            BaseException: The first failure. The other uploads are given up and what was
                uploaded is removed before it is raised.
        """
        begin = time.perf_counter()
        # In this thread: its streams are those that the copies come after.
        together = max(1, min(self.thread_count, len(files)))
        unloading = Unloading(self.memory_budget // together)
        done: dict[str, _Done] = {}
        progress = Progress(len(files), sum(file.expected_size for file in files), self.report)

        def upload(file: FileUpload) -> None:
            try:
                with halted_by(self._stop):
                    done[file.path] = self._upload(file, progress, unloading)
            except BaseException:
                self._stop.set()
                raise

        try:
            with progress:
                _in_parallel(upload, files, self.thread_count, self._stop)
        except BaseException:
            _remove(self.transport, self.base, [file.path for file in files])
            raise
        ordered = [done[file.path] for file in files]
        results = [result for one in ordered for result in one.results]
        stats = SaveStats(
            files=len(files),
            items=len(results),
            unverifiable_items=sum(not hasattr(r.storage_data, CHECKSUMS) for r in results),
            copied_items=sum(len(one.planned.taken) for one in ordered),
            bytes_stored=sum(one.uploaded.size for one in ordered),
            bytes_copied=sum(one.planned.copied_bytes for one in ordered),
            data_requests=sum(one.uploaded.requests for one in ordered),
            retries=sum(one.uploaded.retries for one in ordered),
            upload_seconds=time.perf_counter() - begin,
        )
        return results, stats

    def _upload(self, file: FileUpload, progress: Progress, unloading: Unloading) -> _Done:
        def open_stream(items: Sequence[WriteItem], stored: Callable[[int], None]) -> FileStream:
            return FileStream(items, self._resolve, self.extensions, self._stop, stored, unloading)

        if self.earlier is not None:
            planned = self.earlier.plan_file(
                file.items, lambda items: open_stream(items, lambda _: None)
            )
            if planned.copied:
                counted = _Counted(progress)
                try:
                    stream = open_stream(planned.rest, counted.stored)
                    return self._write(file, planned, stream, progress)
                except StorageError as error:
                    if self._stop.is_set():
                        raise
                    counted.take_back()
                    _log.warning(
                        "%s: all of it is uploaded, since copying of what delta_from holds failed: "
                        "%s",
                        self.base.join(file.path),
                        error,
                    )
        planned = PlannedFile((), (), tuple(file.items))
        return self._write(file, planned, open_stream(planned.rest, progress.stored), progress)

    def _write(
        self, file: FileUpload, planned: PlannedFile, stream: FileStream, progress: Progress
    ) -> _Done:
        with self._ending(stream, last=not planned.copied):
            uploaded = self._sent(file, planned, stream)
        copied = planned.copied_bytes
        key = self.base.join(file.path).key
        _check_size(self.base, key, copied + stream.position, uploaded.size)
        progress.stored(copied)
        progress.complete(file.expected_size, uploaded.size)
        behind = (replace(one, offset=copied + one.offset) for one in stream.written())
        results = results_of(
            file.path,
            [*planned.taken, *behind],
            FileNote(str(self.base), uploaded.size),
            descriptors_of(self.extensions),
        )
        return _Done(planned, uploaded, results)

    @contextmanager
    def _ending(self, stream: FileStream, last: bool) -> Iterator[None]:
        """Close a stream; after a failure that ends the save, tell all others before."""
        try:
            yield
        except BaseException as error:
            if self._stop.is_set() and isinstance(error, (S3DCPError, InterruptedError)):
                # Its requests were ended, or not tried again: another file failed before.
                ended = isinstance(error, (EndpointError, InterruptedError))
                level = logging.DEBUG if ended else logging.ERROR
                _log.log(level, "another upload of this save failed too: %s", error)
                raise Cancelled from error
            if last or not isinstance(error, StorageError):
                self._stop.set()  # before the stream ends: who waits in it is to look up
            raise
        finally:
            stream.close()

    def _sent(self, file: FileUpload, planned: PlannedFile, stream: FileStream) -> Uploaded:
        key = self.base.join(file.path).key
        if not planned.copied:
            return self.transport.upload(
                self.base.bucket, key, stream, expected_size=file.expected_size
            )
        return cast(Composes, self.transport).compose(
            self.base.bucket,
            key,
            planned.copied,
            stream,
            expected_size=max(0, file.expected_size - planned.copied_bytes),
        )

    def _resolve(self, item: WriteItem) -> torch.Tensor | BytesIO:
        with self._planning:
            data: torch.Tensor | BytesIO = self.planner.resolve_data(item)
        return data


class _Counted:
    """What a try of an upload has stored; taken back when it fails."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._count = 0

    def stored(self, count: int) -> None:
        """So many bytes more are stored."""
        with self._lock:
            self._count += count
        self._progress.stored(count)

    def take_back(self) -> None:
        """None of them are after all."""
        self._progress.stored(-self._count)


@dataclass(frozen=True)
class _Done:
    """A file that is stored."""

    planned: PlannedFile
    uploaded: Uploaded
    results: list[WriteResult]


def _check_size(base: S3URI, key: str, sent: int, stored: int) -> None:
    if sent != stored:
        raise StorageError(
            f"of {sent} bytes {stored} were stored; save again", bucket=base.bucket, key=key
        )


def _in_parallel(
    upload: Callable[[FileUpload], None],
    files: Sequence[FileUpload],
    thread_count: int,
    stop: Halt,
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
    except Exception as error:  # noqa: BLE001 - the failure of the save is what is raised
        _log.error("objects of a failed save stay behind at %s: %s", base, error)
