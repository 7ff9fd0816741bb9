"""What becomes of saves and loads under faults, beside other packages.

    python -m benchmarks.fault_table [--rows flip-once ...] [--systems ours ...]

Each row is one fault of a proxy in front of SeaweedFS. After a save the checkpoint is loaded
without a fault, and open multipart uploads are counted.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch_s3dcp.testing import FaultProxy, FaultRule, S3Request, SeaweedServer

from .commands import installed, module_for, write_json
from .fault_rows import ROWS, Row

SYSTEMS = ("ours", "s3torchconnector", "fsspec")
# What is counted in requests that a fault struck needs the same places in each run.
_SEED = 11


class Child:
    """A process that saves and loads for one system; started again after it did not answer."""

    def __init__(self, system: str, environment: dict[str, str], limit: float) -> None:
        self.system = system
        self._environment = {**os.environ, **environment}
        self._limit = limit
        self._process: subprocess.Popen[str] | None = None

    def ask(self, **spec: Any) -> dict[str, Any]:
        """What came of it; ``{"silent": True}`` if nothing within the limit."""
        if self._process is None:
            self._process = subprocess.Popen(
                [*module_for(self.system, "benchmarks.fault_child"), self.system],
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({**spec, "limit": self._limit}) + "\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], self._limit)[0]:
            self.stop()
            return {"silent": True, "seconds": self._limit}
        line = process.stdout.readline()
        if not line:
            self.stop()
            return {"raises": "the process died", "seconds": 0.0}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process = None


class Bench:
    """A server, one bucket, and what each row does there."""

    def __init__(self, server: SeaweedServer, mib: int) -> None:
        self.server = server
        self.mib = mib
        self.bucket = "faults-" + secrets.token_hex(4)
        server.create_bucket(self.bucket)
        self._client = server.client()

    def run(self, row: Row, child: Child) -> dict[str, Any]:
        """One row for one system: what came of it, and how often the fault struck."""
        path = f"s3://{self.bucket}/{child.system}/{row.name}"
        direct = {"path": path, "endpoint": self.server.endpoint_url, "mib": self.mib}
        if row.action == "load" or row.old:
            first = child.ask(action="save", version=1, threads=row.threads, **direct)
            if first.get("raises") or first.get("silent"):
                raise SystemExit(f"{child.system} cannot save at all: {first}")
        with FaultProxy(self.server, seed=_SEED) as proxy:
            proxy.rules.add(_going_down(row, proxy) if row.outage else row.rule)
            version = 2 if row.old else 1
            spec = {**direct, "endpoint": proxy.endpoint_url, "threads": row.threads}
            result = child.ask(action=row.action, version=version, **spec)
            result["struck"] = sum(entry.fault is not None for entry in proxy.log)
            result["requests"] = len(proxy.log)
        if row.action == "save":
            result["open"] = len(self._open_uploads(f"{child.system}/{row.name}/"))
            result["then"] = child.ask(action="load", **direct)
        result["text"] = outcome(row, result)
        self._empty(f"{child.system}/{row.name}/")
        return result

    def _open_uploads(self, prefix: str) -> list[Any]:
        found = self._client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])
        return [upload for upload in found if upload["Key"].startswith(prefix)]

    def _empty(self, prefix: str) -> None:
        for upload in self._open_uploads(prefix):
            self._client.abort_multipart_upload(
                Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
            )
        pages = self._client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self.bucket, Prefix=prefix):
            for entry in page.get("Contents", []):
                self._client.delete_object(Bucket=self.bucket, Key=entry["Key"])


def _going_down(row: Row, proxy: FaultProxy) -> FaultRule:
    """A row's rule, with which the server is gone from the first request that it strikes."""

    def fault(_: S3Request) -> Any:
        proxy.go_down(row.outage)
        return row.rule.fault

    return replace(row.rule, fault=fault)


def loaded(result: dict[str, Any], wanted: int) -> str:
    """What a load was."""
    if result.get("silent"):
        return "no answer"
    if "raises" in result:
        return f"raises {result['raises'].partition(':')[0]}"
    versions = result["versions"]
    if versions == [wanted]:
        return "ok"
    if -1 in versions:
        return "SILENT CORRUPTION"
    return "v1" if versions == [1] else "v2" if versions == [2] else "MIXTURE, no error"


def outcome(row: Row, result: dict[str, Any]) -> str:
    """A cell of the table."""
    missed = "" if result["struck"] or row.text == "none" else ", not struck"
    seconds = f" {result['seconds']:.1f} s{missed}"
    if row.action == "load" or result.get("silent"):
        return loaded(result, 1) + seconds
    wanted = 2 if row.old else 1
    said = f"raises {result['raises'].partition(':')[0]}" if "raises" in result else "save ok"
    then = loaded(result["then"], wanted)
    text = "ok" if (said, then) == ("save ok", "ok") else f"{said}; then load: {then}"
    left = f", {result['open']} open uploads" if result["open"] else ""
    return text + left + seconds


def table(
    rows: list[Row], results: dict[tuple[str, str], dict[str, Any]], systems: list[str]
) -> str:
    """Markdown."""
    lines = []
    for action in ("load", "save"):
        chosen = [row for row in rows if row.action == action]
        if chosen:
            lines += ["", f"| fault on {action} | " + " | ".join(systems) + " |"]
            lines.append("| --- " * (len(systems) + 1) + "|")
        for row in chosen:
            cells = [results[row.name, system]["text"] for system in systems]
            lines.append("| " + " | ".join([row.text, *cells]) + " |")
    return "\n".join(lines[1:])


@contextmanager
def children(systems: list[str], server: SeaweedServer, limit: float) -> Iterator[list[Child]]:
    """A process for each system."""
    made = [Child(system, server.environment(), limit) for system in systems]
    try:
        yield made
    finally:
        for child in made:
            child.stop()


def main() -> None:
    """Run the rows, print the table."""
    parser = argparse.ArgumentParser(description="Saves and loads under faults.")
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS)
    parser.add_argument("--mib", type=int, default=24, help="size of the checkpoint")
    parser.add_argument("--limit", type=float, default=45, help="seconds for an answer")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [row for row in ROWS if options.rows is None or row.name in options.rows]
    systems = options.systems or ["ours", *installed(SYSTEMS[1:])]
    results: dict[tuple[str, str], dict[str, Any]] = {}
    with SeaweedServer() as server, children(systems, server, options.limit) as processes:
        bench = Bench(server, options.mib)
        for child in processes:
            warm = f"s3://{bench.bucket}/{child.system}/warm"
            child.ask(action="save", path=warm, version=1, mib=1, endpoint=server.endpoint_url)
            for row in rows:
                results[row.name, child.system] = result = bench.run(row, child)
                print(f"{row.name} {child.system}: {result}", file=sys.stderr, flush=True)
    print(table(rows, results, systems))
    lines = [{"row": row, "system": system, **r} for (row, system), r in results.items()]
    write_json(options.json, [{"setting": {"case": "faults"}, "rows": lines}])


if __name__ == "__main__":
    main()
