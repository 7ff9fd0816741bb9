"""Processes that save are killed at any moment: what loads is the old one, the new one, or none.

A child saves over an old checkpoint, or for the first time; SIGKILL ends it at a random moment
of the save, or before or after a request. Then both our reader and torch's own load what is
there, a new save to the same address must work, and what was left behind must be removable.
"""

from __future__ import annotations

import random
import secrets
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch_s3dcp.checkpoint_metadata import data_paths, load_metadata
from torch_s3dcp.testing.servers import SeaweedServer

from ._checkpoints import ABSENT, INCOMPLETE, Site, judged, keys_of, name_of, silence
from ._children import Processes, Strike, fork_server
from ._saves import NEW, NEXT, OLD, SAVES, Save, store
from .report import Report
from .report import main as _main


@dataclass
class Clean:
    """A save that nobody disturbed: how long it took, and the requests of each rank."""

    seconds: float = 0.0
    requests: list[int] = field(default_factory=list)


class Campaign:
    """One server, one bucket, children on demand.

    Args:
        site: Where they save to.
        folder: For files of this run.
        report: Told what came of each kill.
    """

    def __init__(self, site: Site, folder: Path, report: Report) -> None:
        self.site = site
        self.folder = folder
        self.report = report
        self.transport = site.transport()
        self.context = fork_server()
        self._clean: dict[str, Clean] = {}

    def kill(self, number: int, save: Save, choose: random.Random) -> None:
        """One save that is killed, and all that is looked at then."""
        clean = self._clean.get(save.name) or self._undisturbed(save)
        path = f"run-{number}"
        save.prepare(self.transport, self.site.bucket, path)
        victims = [rank for rank in range(save.ranks) if choose.random() < 0.6] or [0]
        moment, strikes = _aim(save, clean, victims, choose)
        children = Processes(self.context, self.site, save, path, self.folder, strikes)
        problem = None
        ended: list[Any] = []
        try:
            children.begun()
            if moment is not None:
                time.sleep(moment)
                children.kill(victims)
            ended = children.outcomes()
        except TimeoutError as error:
            problem = str(error)
        finally:
            children.close()
        outcome, wrong = self._look(save, path, ended)
        problem = problem or wrong or self._recover(save, path)
        if problem:
            when = f"after {moment:.3f} of {clean.seconds:.3f} s" if moment else f"at {strikes}"
            self.report.violations.append(
                f"run {number}, {save.name}, ranks {victims} killed {when}: {problem}"
            )
        self.report.add("violated" if problem else outcome)

    def _undisturbed(self, save: Save) -> Clean:
        path = f"clean-{len(self._clean)}"
        save.prepare(self.transport, self.site.bucket, path)
        children = Processes(self.context, self.site, save, path, self.folder)
        try:
            children.begun()
            begin = time.monotonic()
            counts = children.outcomes()
        finally:
            children.close()
        clean = self._clean[save.name] = Clean(time.monotonic() - begin, counts)
        outcome, problem = self._look(save, path, counts)
        if outcome != "new":
            raise RuntimeError(f"{save.name}, not disturbed: {counts}, {outcome}, {problem}")
        self._empty(path)
        return clean

    def _look(self, save: Save, path: str, ended: list[Any]) -> tuple[str, str | None]:
        """What is there now, in the words of the promise."""
        found, problem = judged(
            self.transport,
            self.site.bucket,
            path,
            self.folder / path,
            save.before | {NEW},
            save.large,
        )
        if problem:
            return found, problem
        if found in (INCOMPLETE, ABSENT) and save.over:
            return found, f"the old one is lost: {found}"
        if ended and all(isinstance(one, int) for one in ended) and found != name_of(NEW):
            return found, f"all ranks said that it is saved: {found}"
        return {name_of(OLD): "old", name_of(NEW): "new"}.get(found, found), None

    def _recover(self, save: Save, path: str) -> str | None:
        """Save there again, then remove what was left behind; what goes wrong, in words."""
        bucket = self.site.bucket
        try:
            store(
                self.transport,
                self.site.url(path),
                NEXT,
                save.large,
                collectives=save.collectives,
                **save.options,
            )
        except Exception as error:  # noqa: BLE001 - told in words
            return f"the next save failed: {error!r}"
        self._clean_up(save, path)
        found, problem = judged(
            self.transport, bucket, path, self.folder / path, {OLD, NEW, NEXT}, save.large
        )
        self._empty(path)
        if problem or found != name_of(NEXT):
            return f"after the next save and the cleaning: {problem or found}"
        left = self.transport.client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
        return f"uploads that cannot be aborted: {left}" if left else None

    def _clean_up(self, save: Save, path: str) -> None:
        """As the guide says: abort what was not completed, delete what no metadata names."""
        bucket, client = self.site.bucket, self.transport.client
        for upload in client.list_multipart_uploads(Bucket=bucket).get("Uploads", []):
            client.abort_multipart_upload(
                Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
            )
        keys = set(keys_of(self.transport, bucket, path))
        named = set()
        for key in [key for key in keys if key.endswith(".metadata")]:
            with self.transport.get(bucket, key) as body:
                named |= {f"{path}/{name}" for name in data_paths(load_metadata(body.readall()))}
        self.transport.delete(bucket, {key for key in keys - named if key.endswith(".distcp")})

    def _empty(self, path: str) -> None:
        for place in (path, f"{path}-base"):
            self.transport.delete(
                self.site.bucket, keys_of(self.transport, self.site.bucket, place)
            )


def _aim(
    save: Save, clean: Clean, victims: Sequence[int], choose: random.Random
) -> tuple[float | None, list[Strike | None]]:
    """When to kill: after some seconds, or at requests of the victims."""
    strikes: list[Strike | None] = [None] * save.ranks
    if choose.random() < 0.5:
        return choose.random() * 1.05 * clean.seconds, strikes
    when = choose.choice(("before", "after"))
    for rank in victims:
        strikes[rank] = Strike(choose.randint(1, clean.requests[rank]), when)
    return None, strikes


def run(seed: int, runs: int) -> Report:
    """Kill so many saves, of all kinds in turn."""
    silence()
    report = Report("kill -9", "R3", seed)
    choose = random.Random(seed)
    with SeaweedServer() as server, tempfile.TemporaryDirectory() as folder:
        bucket = "kills-" + secrets.token_hex(6)
        server.create_bucket(bucket)
        campaign = Campaign(Site.on(server, bucket), Path(folder), report)
        for number in range(runs):
            campaign.kill(number, SAVES[number % len(SAVES)], choose)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    return _main(run, 440, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
