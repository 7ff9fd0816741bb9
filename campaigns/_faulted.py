"""A save or a load through the proxy under one fault, and what may come of it.

A run ends in success with the right bits, or in a typed error with the old checkpoint as it was.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from torch_s3dcp import S3StorageReader, S3StorageWriter
from torch_s3dcp.exceptions import CommitUnknownError, S3DCPError
from torch_s3dcp.testing import FaultProxy, FaultRule, LoggedRequest, S3Request, faults

from ._checkpoints import Quiet, Site

State = dict[str, Any]

# No run takes so long unless it hangs.
WATCHDOG = 60.0
OLD, NEW = 1, 2


@dataclass(frozen=True)
class Run:
    """One run, drawn before it begins.

    Args:
        number: Of the run, for reports.
        sizes: Bytes of the tensors.
        action: ``load``, ``first`` (a save where nothing is) or ``over`` (a save over another).
        rule: The fault; None: a clean run.
        transient: Whether it must succeed.
        settings: Of the client.
        options: Of the writer.
        reader: Name of the reader.
        wanted: How many of the tensors a load asks for.
    """

    number: int
    sizes: tuple[int, ...]
    action: str
    rule: FaultRule | None
    transient: bool
    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    reader: str = "direct"
    wanted: int = 0

    @property
    def kind(self) -> str:
        """The fault's name."""
        return type(self.rule.fault).__name__ if self.rule else "clean"


@dataclass
class Result:
    """What came of a run; ``struck`` is what the fault did to it."""

    outcome: str
    problem: str | None = None
    struck: list[LoggedRequest] = field(default_factory=list)
    seconds: float = 0.0


def state_of(version: int, sizes: tuple[int, ...]) -> State:
    """The same values for the same arguments; no two versions share an element."""
    state: State = {
        f"x{number}": (torch.arange(size // 4, dtype=torch.int32) * 2654435 + number) * 4 + version
        for number, size in enumerate(sizes)
    }
    return {**state, "step": version}


def _blank(state: State) -> State:
    return {n: torch.zeros_like(v) if n != "step" else None for n, v in state.items()}


def version_of(state: State, sizes: tuple[int, ...]) -> str:
    """The version that a state is, to the last bit, or what is wrong with it."""
    found = {
        name: next((v for v in (OLD, NEW) if _equal(value, state_of(v, sizes)[name])), 0)
        for name, value in state.items()
    }
    versions = set(found.values())
    if 0 in versions:
        return f"CORRUPT: {[name for name, version in found.items() if not version]}"
    return f"v{versions.pop()}" if len(versions) == 1 else f"MIXED: {found}"


def _equal(value: Any, expected: Any) -> bool:
    if isinstance(expected, torch.Tensor):
        return isinstance(value, torch.Tensor) and torch.equal(value, expected)
    return bool(value == expected)


class Worker:
    """Runs one after another, each through a proxy of its own."""

    def __init__(self, site: Site, name: str) -> None:
        torch.set_num_threads(1)
        self.site = site
        self.name = name
        self._direct = site.transport()
        self._saved: dict[tuple[Any, ...], str] = {}
        self._paths = itertools.count()

    def run(self, run: Run, seed: int) -> Result:
        """One run, judged; the fault's open places are chosen by ``seed``."""
        path = self._prepare(run)
        keys = {"access_key": self.site.access_key, "secret_key": self.site.secret_key}
        begin = time.monotonic()
        with FaultProxy(self.site.endpoint_url, seed=seed, **keys) as proxy:
            if run.rule:
                proxy.rules.add(run.rule)
            said, hung = _watched(lambda: self._act(run, path, proxy))
            seconds = time.monotonic() - begin
            struck = [entry for entry in proxy.log if entry.fault is not None]
            proxy.rules.clear()
            if not hung and any(isinstance(entry.fault, faults.Late) for entry in struck):
                proxy.release()
        result = self._judge(run, path, said, hung, struck)
        result.struck, result.seconds = struck, seconds
        if run.action != "load":
            self._empty(path)
        return result

    def _prepare(self, run: Run) -> str:
        """Where the run takes place, with the old checkpoint if it needs one."""
        kind = (run.sizes, tuple(sorted(run.options.items())))
        if run.action == "load" and kind in self._saved:
            return self._saved[kind]
        path = f"{self.name}/{next(self._paths)}"
        if run.action != "first":
            with Quiet():
                writer = S3StorageWriter(self.site.url(path), transport=self._direct, **run.options)
                dcp.save(state_of(OLD, run.sizes), storage_writer=writer)
        if run.action == "load":
            self._saved[kind] = path
        return path

    def _act(self, run: Run, path: str, proxy: FaultProxy) -> str:
        """Save or load through the proxy; gives what a load found."""
        transport = self.site.transport(proxy.endpoint_url, **run.settings)
        with Quiet():
            if run.action == "load":
                return self._load(run, path, transport, run.wanted)
            writer = S3StorageWriter(self.site.url(path), transport=transport, **run.options)
            dcp.save(state_of(NEW, run.sizes), storage_writer=writer)
        return "saved"

    def _load(self, run: Run, path: str, transport: Any, wanted: int = 0) -> str:
        state = _blank(state_of(OLD, run.sizes))
        names = list(state)[: wanted or None]
        state = {name: state[name] for name in names}
        reader = S3StorageReader(
            self.site.url(path), transport=transport, reader_constructor=run.reader
        )
        dcp.load(state, storage_reader=reader)
        return version_of(state, run.sizes)

    def _judge(
        self, run: Run, path: str, said: Any, hung: str | None, struck: list[LoggedRequest]
    ) -> Result:
        if hung:
            return Result("HUNG", f"no end after {WATCHDOG:g} s: {hung}")
        if isinstance(said, BaseException):
            return self._judge_error(run, path, said, struck)
        if run.action == "load":
            return Result("ok") if said == "v1" else Result("WRONG", str(said))
        found = self._found(run, path)
        if found != "v2":
            return Result("LOST", f"the save said it is saved, then: {found}")
        return self._look_for_uploads(path, struck, "ok")

    def _judge_error(
        self, run: Run, path: str, error: BaseException, struck: list[LoggedRequest]
    ) -> Result:
        causes = _causes(error)
        names = ", ".join(sorted({type(cause).__name__ for cause in causes}))
        untyped = [cause for cause in causes if not isinstance(cause, S3DCPError)]
        if untyped:
            shown = "".join(traceback.format_exception(untyped[0]))[-600:]
            return Result(f"UNTYPED {names}", shown)
        outcome = f"raised {names}"
        if run.action != "load":
            allowed = {"over": {"v1"}, "first": {"raised CheckpointNotFoundError"}}[run.action]
            allowed |= {"raised CheckpointIncompleteError"} if run.action == "first" else set()
            if any(isinstance(cause, CommitUnknownError) for cause in causes):
                allowed = allowed | {"v2"}
            found = self._found(run, path)
            if found not in allowed:
                return Result("LOST", f"the save {outcome}, then: {found}")
            result = self._look_for_uploads(path, struck, outcome)
            if result.problem:
                return result
        if run.transient or run.rule is None:
            return Result(f"failed: {outcome}", f"not repaired: {causes[0]}"[:500])
        return Result(outcome)

    def _found(self, run: Run, path: str) -> str:
        """What lies there, seen without the proxy."""
        try:
            with Quiet():
                return self._load(run, path, self._direct)
        except CheckpointException as error:
            (cause, *_) = _causes(error)
            return f"raised {type(cause).__name__}"

    def _look_for_uploads(self, path: str, struck: list[LoggedRequest], outcome: str) -> Result:
        """No upload may be open, unless its name, or what was to abort it, was lost on the way."""
        client: Any = self._direct.client
        deadline = time.monotonic() + 2
        while True:
            answer = client.list_multipart_uploads(Bucket=self.site.bucket)
            uploads = [u for u in answer.get("Uploads", []) if u["Key"].startswith(f"{path}/")]
            if not uploads:
                return Result(outcome)
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        operations = {entry.operation for entry in struck}
        if operations & {"CreateMultipartUpload", "AbortMultipartUpload"}:
            return Result(f"{outcome}, an upload without a name")
        return Result("LEFT", f"{outcome}; open: {[upload['Key'] for upload in uploads]}")

    def _empty(self, path: str) -> None:
        client: Any = self._direct.client
        bucket = self.site.bucket
        keys = [i.key for page in self._direct.list(bucket, f"{path}/") for i in page.object_info]
        self._direct.delete(bucket, keys)
        for upload in client.list_multipart_uploads(Bucket=bucket).get("Uploads", []):
            if upload["Key"].startswith(f"{path}/"):
                client.abort_multipart_upload(
                    Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                )


def _causes(error: BaseException) -> list[BaseException]:
    failures = getattr(error, "failures", None)
    return [wrapped[0] for _, wrapped in sorted(failures.items())] if failures else [error]


def _watched(work: Callable[[], Any]) -> tuple[Any, str | None]:
    """What the work gave or raised; where it stood, if it did not end."""
    came: list[Any] = []

    def do() -> None:
        try:
            came.append(work())
        except BaseException as error:  # noqa: BLE001 - judged by the caller
            came.append(error)

    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    thread.join(WATCHDOG)
    if came:
        return came[0], None
    frame = sys._current_frames().get(thread.ident or 0)
    return None, "".join(traceback.format_stack(frame)[-4:]) if frame else "unknown"


def told(run: Run, result: Result) -> str:
    """A violation, with what is needed to see it again."""
    struck = [(e.operation, e.key[-24:], e.request.start, e.flipped) for e in result.struck]
    rule = f"{run.rule.fault} on {run.rule.operation} {run.rule.key!r}" if run.rule else "no fault"
    return (
        f"run {run.number}, {run.action}, {run.reader}, {run.sizes}, {run.options}: {rule}, "
        f"struck {struck[:3]}: {result.outcome}: {result.problem}"
    )


def is_data(request: S3Request) -> bool:
    """Whether it is about an object of tensors."""
    return request.key.endswith(".distcp")
