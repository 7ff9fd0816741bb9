"""What the commands that compare systems share: interpreters, names of systems, the results."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .measure import machine

PEERS = os.environ.get("TORCH_S3DCP_PEERS_PYTHON", ".venv-peers/bin/python")


def installed(peers: Sequence[str]) -> list[str]:
    """The other packages where they are installed, else none of them."""
    if Path(PEERS).exists():
        return list(peers)
    print(f"no interpreter {PEERS}: `make peers` installs the other packages")
    return []


def pick(wanted: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """Systems by name; one that is not known stands for all that begin with it. None: all."""
    if wanted is None:
        return list(known)
    chosen: list[str] = []
    for name in wanted:
        exact = ":" in name or name in known
        chosen += [name] if exact else [s for s in known if s.partition(":")[0] == name]
    return chosen


def module_for(system: str, module: str) -> list[str]:
    """The command that runs a module with the interpreter that has the system's packages."""
    peer = system.partition(":")[0] in ("s3torchconnector", "fsspec")
    return [PEERS if peer else sys.executable, "-W", "ignore", "-m", module]


def write_json(file: Path | None, tables: list[dict[str, Any]]) -> None:
    """Write the tables, and what they were measured on, to the file if there is one."""
    if file:
        file.write_text(
            json.dumps({"machine": machine(), "torch": torch_version(), "tables": tables}, indent=1)
        )


def memory_folder() -> str | None:
    """Where folders lie in memory; None: where they always do."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def torch_version() -> str:
    """The release of PyTorch, without what it was built for."""
    return re.sub(r"[+].*", "", torch.__version__)
