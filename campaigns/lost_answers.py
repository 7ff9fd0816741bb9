"""The server acts on a request of a save, and the answer is lost: the save succeeds, exactly once.

Each request of each kind of save that changes something loses its answer: the connection is
reset, or an error comes instead. The save must return, the new checkpoint load bit for bit, one
commit have landed, and nothing stay behind but what the guide names: a multipart upload without
parts, when nobody got its id.
"""

from __future__ import annotations

import random
import secrets
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch_s3dcp.checkpoint_metadata import data_paths, load_metadata
from torch_s3dcp.testing import FaultProxy
from torch_s3dcp.testing.faults import Reply, Reset, WireFault
from torch_s3dcp.testing.request_log import LoggedRequest
from torch_s3dcp.testing.servers import SeaweedServer

from ._checkpoints import Site, judged, keys_of, name_of, silence
from ._children import fork_server, save_in_ranks
from ._saves import NEW, SAVES, Save
from ._steps import steps_of
from .report import Report
from .report import main as _main

MUTATIONS = (
    "PutObject",
    "CreateMultipartUpload",
    "UploadPart",
    "UploadPartCopy",
    "CompleteMultipartUpload",
    "DeleteObject",
    "DeleteObjects",
)


@dataclass(frozen=True)
class Loss:
    """How an answer is lost: what comes instead of it, how often, and of which requests."""

    name: str
    fault: WireFault
    times: int = 1
    operations: tuple[str, ...] = MUTATIONS


LOSSES = (
    Loss("reset", Reset("answer")),
    Loss("reset twice", Reset("answer"), 2),
    Loss("500", Reply(500, acted=True)),
    Loss("503", Reply(503, "SlowDown", acted=True)),
    Loss(
        "200 with an error",
        Reply(200, acted=True),
        operations=("CompleteMultipartUpload", "UploadPartCopy"),
    ),
)


class Campaign:
    """One server, a proxy before it, one bucket.

    Args:
        server: What acts.
        proxy: What loses its answers.
        folder: For files of this run.
        report: Told what came of each loss.
    """

    def __init__(
        self, server: SeaweedServer, proxy: FaultProxy, folder: Path, report: Report
    ) -> None:
        bucket = "lost-" + secrets.token_hex(6)
        server.create_bucket(bucket)
        self._proxy = proxy
        self._folder = folder
        self._report = report
        self._direct = Site.on(server, bucket)
        self._lossy = Site(proxy.endpoint_url, bucket, server.access_key, server.secret_key)
        self._context = fork_server()
        self._runs = 0
        self._made: dict[str, Counter[str]] = {}

    def count(self, save: Save, loss: Loss) -> int:
        """How many requests of a save can be struck so."""
        if save.name not in self._made:
            path = self._begin(save)
            self._save(save, path)
            self._proxy.log.settle()
            self._made[save.name] = Counter(entry.operation for entry in self._proxy.log)
            self._empty(path)
        return sum(self._made[save.name][name] for name in loss.operations)

    def lose(self, save: Save, loss: Loss, number: int) -> None:
        """One answer is lost, of the request of a number, in the order of their arrival."""
        path = self._begin(save)
        rule = self._proxy.add(loss.fault, operation=loss.operations, skip=number, count=loss.times)
        try:
            self._save(save, path)
            problem = None
        except Exception as error:  # noqa: BLE001 - told in words
            problem = f"the save failed: {error!r}"
        finally:
            self._proxy.remove(rule)
        self._proxy.log.settle()
        struck = [entry for entry in self._proxy.log if entry.fault is not None]
        name = struck[0].operation if struck else "nothing"
        if not struck:
            problem = problem or "no answer was lost"
        problem = problem or self._look(save, path, struck)
        if problem:
            where = struck[0].key if struck else ""
            self._report.violations.append(
                f"{save.name}, {loss.name} for request {number}, {name} {where}: {problem}"
            )
        self._report.add("violated" if problem else f"ok without {name}")
        self._empty(path)

    def _begin(self, save: Save) -> str:
        self._runs += 1
        path = f"run-{self._runs}"
        save.prepare(self._direct.transport(), self._direct.bucket, path)
        self._proxy.log.settle()
        self._proxy.log.clear()
        return path

    def _save(self, save: Save, path: str) -> None:
        if save.ranks > 1:
            save_in_ranks(self._context, self._lossy, save, path, self._folder)
        else:
            save.run(self._lossy.transport(), self._lossy.bucket, path)

    def _look(self, save: Save, path: str, struck: Sequence[LoggedRequest]) -> str | None:
        """What is wrong after a save that returned."""
        transport, bucket = self._direct.transport(), self._direct.bucket
        versions = save.before | {NEW}
        found, problem = judged(
            transport, bucket, path, self._folder / "local", versions, save.large
        )
        if problem or found != name_of(NEW):
            return problem or f"the save returned, but {found} is there"
        commits = sum(step.commits for step in steps_of(self._proxy.log.mutations()))
        if commits != 1:
            return f"{commits} commits landed"
        keys = set(keys_of(transport, bucket, path))
        (metadata,) = (key for key in keys if key.endswith(".metadata"))
        with transport.get(bucket, metadata) as body:
            named = {f"{path}/{name}" for name in data_paths(load_metadata(body.readall()))}
        if left := keys - named - {metadata}:
            return f"objects stay behind: {sorted(left)}"
        left_open = transport.client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
        nameless = sum(entry.operation == "CreateMultipartUpload" for entry in struck)
        if len(left_open) > nameless:
            return f"{len(left_open)} uploads stay open, {nameless} may"
        return None

    def _empty(self, path: str) -> None:
        transport, bucket = self._direct.transport(), self._direct.bucket
        client = transport.client
        for place in (path, f"{path}-base"):
            transport.delete(bucket, keys_of(transport, bucket, place))
        for upload in client.list_multipart_uploads(Bucket=bucket).get("Uploads", []):
            client.abort_multipart_upload(
                Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
            )


def run(seed: int, runs: int) -> Report:
    """Lose so many answers, or one of each request of each kind of save in each way."""
    silence()
    report = Report("lost answers", "R5", seed)
    with (
        SeaweedServer() as server,
        FaultProxy(server, keep_bodies=True) as proxy,
        tempfile.TemporaryDirectory() as folder,
    ):
        campaign = Campaign(server, proxy, Path(folder), report)
        kinds = [(save, loss) for save in SAVES for loss in LOSSES]
        choose = random.Random(seed)
        choose.shuffle(kinds)
        for save, loss in kinds:
            numbers = list(range(campaign.count(save, loss)))
            choose.shuffle(numbers)
            for number in numbers[: -(-runs // len(kinds))]:
                if report.runs == runs:
                    return report
                campaign.lose(save, loss, number)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    return _main(run, 1000, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
