"""A save and a load write nothing to the local disk, and need no home folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from torch_s3dcp.testing.servers import MotoServer

# Notes what is opened for writing, made or renamed by whatever runs between the marks.
_SCRIPT = """
import json, os, sys, tempfile
import torch, torch.distributed.checkpoint as dcp
from torch_s3dcp import S3StorageReader, S3StorageWriter

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
seen = []

def hook(event, args):
    if event == "open" and args[2] is not None and args[2] & WRITES:
        seen.append([event, str(args[0])])
    elif event in ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate", "os.remove"):
        seen.append([event, str(args[0])])

sys.addaudithook(hook)
path = "s3://" + sys.argv[1] + "/run"
state = {"large": torch.arange(3 * 2**20, dtype=torch.float32), "step": 7}
for writer in (
    S3StorageWriter(path, thread_count=2),
    S3StorageWriter(path),
    S3StorageWriter(path, delta_from="s3://" + sys.argv[1] + "/run"),
):
    dcp.save(state, storage_writer=writer)
for reader in ("direct", "dcp_optimized", "range_based", "sequential"):
    found = {"large": torch.zeros(3 * 2**20), "step": 0}
    dcp.load(found, storage_reader=S3StorageReader(path, reader_constructor=reader))
    assert torch.equal(found["large"], state["large"]) and found["step"] == 7
ours = list(seen)
with tempfile.TemporaryFile() as file:  # the hook works
    pass
print(json.dumps([ours, len(seen) > len(ours)]))
"""


@pytest.mark.slow
def test_nothing_is_written(moto_server: MotoServer, moto_bucket: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    done = subprocess.run(
        # Compiled modules would be written beside their sources.
        [sys.executable, "-B", "-W", "ignore", "-c", _SCRIPT, moto_bucket],
        cwd=tmp_path,
        env={**environment, **moto_server.environment()},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    written, works = json.loads(done.stdout.splitlines()[-1])
    assert works
    assert written == []
    assert list(tmp_path.iterdir()) == []
