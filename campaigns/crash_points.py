"""Every point at which a save may die, replayed: the old checkpoint, the new one, or incomplete.

The requests of a save are recorded by a proxy. Each prefix of them is sent to a fresh bucket of a
real server. Then all sets of them are taken that may have been done when the save dies, whatever
was concurrent, and with deletions of several objects done by half; what the bucket would hold
is put into a bucket in memory. Both our reader and torch's own load each of these.
"""

from __future__ import annotations

import secrets
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch_s3dcp.testing import FaultProxy
from torch_s3dcp.testing.servers import SeaweedServer
from torch_s3dcp.transports import MemoryTransport, Transport

from ._checkpoints import ABSENT, INCOMPLETE, Site, judged, name_of, silence
from ._children import fork_server, save_in_ranks
from ._saves import NEW, OLD, SAVES, Save
from ._steps import Bucket, Step, contests, crash_points, steps_of
from .report import Report
from .report import main as _main

# Of one save. More are chosen by the seed.
_MOST = 100_000
_PATH = "run"
_BUCKET = "crash-points"


class Recorder:
    """Saves through a proxy.

    Args:
        server: Where to.
        folder: For files of this run.
    """

    def __init__(self, server: SeaweedServer, folder: Path) -> None:
        self._server = server
        self._folder = folder
        self._context = fork_server()

    def record(self, save: Save, number: int) -> tuple[list[Step], list[Step]]:
        """What made the bucket as it was before the save, and what the save did."""
        with FaultProxy(self._server, keep_bodies=True) as proxy:
            bucket = f"recorded-{secrets.token_hex(6)}"
            self._server.create_bucket(bucket)
            site = Site(
                proxy.endpoint_url, bucket, self._server.access_key, self._server.secret_key
            )
            try:
                save.prepare(site.transport(), bucket, _PATH)
                proxy.log.settle()
                before = steps_of(proxy.log.mutations())
                proxy.log.clear()
                self._run(save, site, number)
                proxy.log.settle()
                return before, steps_of(proxy.log.mutations())
            finally:
                self._server.delete_bucket(bucket)

    def _run(self, save: Save, site: Site, number: int) -> None:
        if save.ranks == 1:
            save.run(site.transport(), site.bucket, _PATH)
            return
        folder = self._folder / str(number)
        folder.mkdir()
        save_in_ranks(self._context, site, save, _PATH, folder)


class Judge:
    """Looks at what one save may leave.

    Args:
        save: The save.
        steps: What it did.
        folder: For files of this run.
        report: Told what came of each crash point.
    """

    def __init__(self, save: Save, steps: Sequence[Step], folder: Path, report: Report) -> None:
        self._save = save
        self._steps = steps
        self._folder = folder
        self._report = report

    def look(self, transport: Transport, bucket: str, done: int) -> str:
        """What loads after a set of steps; a violation, unless it is just what it should be."""
        expected = self._expected(done)
        versions = self._save.before | {NEW}
        try:
            found, problem = judged(
                transport, bucket, _PATH, self._folder, versions, self._save.large
            )
        except Exception as error:  # noqa: BLE001 - told in words
            found, problem = "violation", repr(error)
        if problem is None and found != expected:
            problem = f"{found} instead of {expected}"
        if problem is None:
            return {name_of(OLD): "old", name_of(NEW): "new"}.get(found, found)
        names = [f"{s.kind} {s.key}" for n, s in enumerate(self._steps) if done >> n & 1]
        self._report.violations.append(f"{self._save.name}, after {names}: {problem}")
        return "violated"

    def _expected(self, done: int) -> str:
        steps = [step for n, step in enumerate(self._steps) if done >> n & 1]
        if any(step.commits for step in steps):
            return name_of(NEW)
        if self._save.over:
            return name_of(OLD)
        return INCOMPLETE if any(step.shows for step in steps) else ABSENT


def in_memory(judge: Judge, before: Sequence[Step], steps: Sequence[Step], report: Report) -> None:
    """Look at every crash point of a save; those that show the same objects are looked at once."""
    begun = Bucket()
    for step in before:
        begun.do(step)
    points, all_of_them = crash_points(steps, _MOST, report.seed)
    shown = sum(1 << number for number, step in enumerate(steps) if step.shows)
    seen: dict[int, str] = {}
    for done in sorted(points):
        if done & shown not in seen:
            transport = MemoryTransport(_BUCKET)
            for key, data in _after(begun, steps, done).objects.items():
                transport.put(_BUCKET, key, data)
            seen[done & shown] = judge.look(transport, _BUCKET, done)
        report.add(seen[done & shown] + ("" if all_of_them else ", some of very many"))


def _after(begun: Bucket, steps: Sequence[Step], done: int) -> Bucket:
    bucket = begun.copy()
    for number, step in enumerate(steps):
        if done >> number & 1:
            bucket.do(step)
    return bucket


class Replay:
    """Sends steps to a bucket; ids of uploads, and ETags of parts, become those given there."""

    def __init__(self, client: Any, bucket: str) -> None:
        self._client = client
        self._bucket = bucket
        self._uploads: dict[str | None, str] = {}
        self._etags: dict[tuple[str | None, int | None], str] = {}

    def do(self, step: Step) -> None:
        """One step, with the conditions that it had."""
        place: dict[str, Any] = {"Bucket": self._bucket, "Key": step.key}
        if step.upload is not None and step.kind != "create":
            place["UploadId"] = self._uploads[step.upload]
        getattr(self, f"_{step.kind}")(step, place)

    def _put(self, step: Step, place: dict[str, Any]) -> None:
        names = {"if-match": "IfMatch", "if-none-match": "IfNoneMatch"}
        conditions = {names[name]: text for name, text in step.conditions.items()}
        self._client.put_object(Body=step.body, Metadata=step.metadata, **place, **conditions)

    def _delete(self, step: Step, place: dict[str, Any]) -> None:
        self._client.delete_object(**place)

    def _create(self, step: Step, place: dict[str, Any]) -> None:
        self._uploads[step.upload] = self._client.create_multipart_upload(**place)["UploadId"]

    def _part(self, step: Step, place: dict[str, Any]) -> None:
        answer = self._client.upload_part(PartNumber=step.part, Body=step.body, **place)
        self._etags[step.upload, step.part] = answer["ETag"]

    def _copy(self, step: Step, place: dict[str, Any]) -> None:
        assert step.source is not None
        key, start, end = step.source
        answer = self._client.upload_part_copy(
            PartNumber=step.part,
            CopySource={"Bucket": self._bucket, "Key": key},
            CopySourceRange=f"bytes={start}-{end - 1}",
            **place,
        )
        self._etags[step.upload, step.part] = answer["CopyPartResult"]["ETag"]

    def _complete(self, step: Step, place: dict[str, Any]) -> None:
        parts = [
            {"PartNumber": number, "ETag": self._etags[step.upload, number]}
            for number in step.parts
        ]
        self._client.complete_multipart_upload(MultipartUpload={"Parts": parts}, **place)

    def _abort(self, step: Step, place: dict[str, Any]) -> None:
        self._client.abort_multipart_upload(**place)


def on_server(
    judge: Judge,
    server: SeaweedServer,
    before: Sequence[Step],
    steps: Sequence[Step],
    report: Report,
) -> None:
    """Send a save's requests to a fresh bucket, one by one; look at it after each."""
    bucket = f"replayed-{secrets.token_hex(6)}"
    server.create_bucket(bucket)
    try:
        transport = Site.on(server, bucket).transport()
        replay = Replay(transport.client, bucket)
        for step in before:
            replay.do(step)
        for count in range(len(steps) + 1):
            if count:
                replay.do(steps[count - 1])
            report.add(judge.look(transport, bucket, (1 << count) - 1) + ", on the server")
    finally:
        server.delete_bucket(bucket)


def run(seed: int, runs: int) -> Report:
    """Record so many saves, of all kinds in turn; look at every crash point of each."""
    silence()
    report = Report("crash points", "R3", seed)
    with SeaweedServer() as server, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recorder = Recorder(server, folder)
        for number in range(runs):
            save = SAVES[(seed - 1 + number) % len(SAVES)]
            before, steps = recorder.record(save, number)
            report.violations += [
                f"{save.name}: {one.key} is written by two at one time, their order is open: "
                f"{one.kind}, {other.kind}"
                for one, other in contests(steps)
            ]
            judge = Judge(save, steps, folder / "local", report)
            on_server(judge, server, before, steps, report)
            in_memory(judge, before, steps, report)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    return _main(run, 2 * len(SAVES), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
