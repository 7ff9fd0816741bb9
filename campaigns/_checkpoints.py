"""Checkpoints that tell their versions apart, where they lie, and what a load of them gives."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from torch_s3dcp import S3ClientConfig, S3Credentials, S3StorageReader
from torch_s3dcp.exceptions import (
    CheckpointIncompleteError,
    CheckpointNotFoundError,
    ObjectNotFoundError,
)
from torch_s3dcp.testing.servers import S3Server
from torch_s3dcp.transports import BotoTransport, Transport

MIB = 1024**2
State = dict[str, Any]

#: What a load gives where there is no whole checkpoint.
INCOMPLETE = "incomplete"
ABSENT = "nothing there"


@lru_cache(maxsize=16)
def model(version: int, large: bool = False) -> State:
    """The state of a version: some tensors are those of all versions, the others its own.

    large: 18 MiB with two tensors that are uploaded in parts, else 60 KiB.
    """
    kept, changed = (MIB, 6 * MIB) if large else (8192, 6144)
    return {
        **{f"kept.{n}": _randn(kept // 4, n) for n in range(6)},
        **{f"changed.{n}": _randn(changed // 4, 100 * version + n) for n in range(2)},
        "bias": _randn(33, 100 * version + 50),
        "step": version,
    }


def _randn(size: int, seed: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def which(state: State, versions: Collection[int], large: bool) -> str | None:
    """The version that a loaded state is, to the last bit; None: it is none of these."""
    if state["step"] not in versions:
        return None
    whole = model(state["step"], large)
    same = all(
        torch.equal(state[name].view(torch.int32), value.view(torch.int32))
        for name, value in whole.items()
        if isinstance(value, torch.Tensor)
    )
    return name_of(state["step"]) if same else None


def name_of(version: int) -> str:
    """How a version is called in reports."""
    return f"v{version}"


@dataclass(frozen=True)
class Site:
    """A bucket on a local server; can be sent to another process."""

    endpoint_url: str
    bucket: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)

    @classmethod
    def on(cls, server: S3Server, bucket: str) -> Site:
        """A bucket on that server."""
        return cls(server.endpoint_url, bucket, server.access_key, server.secret_key)

    def url(self, path: str) -> str:
        """Address of a checkpoint."""
        return f"s3://{self.bucket}/{path}"

    def transport(self, endpoint_url: str | None = None, **settings: Any) -> BotoTransport:
        """The way there, or past another address."""
        config = S3ClientConfig(
            endpoint_url=endpoint_url or self.endpoint_url,
            credentials=S3Credentials(self.access_key, self.secret_key),
            force_path_style=True,
            part_size=5 * MIB,
            **settings,
        )
        return BotoTransport("us-east-1", config)


def silence() -> None:
    """Hide what torch says about each load without a group, or of an incomplete checkpoint.

    For a whole process: what ``Quiet`` hides comes through where threads use it at one time.
    """
    warnings.filterwarnings("ignore", message="torch.distributed is ")
    logging.getLogger().addFilter(lambda record: "metadata is not found" not in record.msg)


class Quiet(warnings.catch_warnings):
    """Hides what torch says about working without a process group."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", message="torch.distributed is ")
        warnings.filterwarnings("ignore", message="the checkpoint at .* is complete")


def keys_of(transport: Transport, bucket: str, path: str) -> list[str]:
    """All keys of a checkpoint."""
    return [i.key for page in transport.list(bucket, f"{path}/") for i in page.object_info]


def copy_down(transport: Transport, bucket: str, path: str, folder: Path) -> None:
    """A checkpoint as files; what is gone when it is asked for is left out."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for key in keys_of(transport, bucket, path):
        file = folder / key.removeprefix(f"{path}/")
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with transport.get(bucket, key) as body:
                file.write_bytes(body.readall())
        except ObjectNotFoundError:
            continue


def judged(
    transport: Transport,
    bucket: str,
    path: str,
    folder: Path,
    versions: Collection[int],
    large: bool,
) -> tuple[str, str | None]:
    """What our reader and torch's own find at an address, and what is wrong with that.

    A request that was under way when its process died may still land: where the two readers
    disagree they look once more.
    """
    for _ in range(2):
        ours = loaded(
            lambda state: dcp.load(
                state,
                storage_reader=S3StorageReader(f"s3://{bucket}/{path}", transport=transport),
            ),
            versions,
            large,
        )
        copy_down(transport, bucket, path, folder)
        theirs = loaded_from(folder, versions, large)
        if theirs == ours or {ours, theirs} == {ABSENT, INCOMPLETE}:
            break
    else:
        return "violation", f"our reader: {ours}; torch's: {theirs}"
    known = {name_of(version) for version in versions} | {INCOMPLETE, ABSENT}
    return (ours, None) if ours in known else ("violation", f"both readers: {ours}")


def loaded_from(folder: Path, versions: Collection[int], large: bool) -> str:
    """What torch's own reader makes of files."""
    found = loaded(
        lambda state: dcp.load(state, storage_reader=dcp.FileSystemReader(folder)), versions, large
    )
    if not found.startswith("raised ") or any(folder.glob("*.metadata")):
        return found
    return INCOMPLETE if any(folder.iterdir()) else ABSENT


def loaded(load: Callable[[State], None], versions: Collection[int], large: bool) -> str:
    """A version, ``incomplete``, ``nothing there``, or else what came instead, in words."""
    whole = model(next(iter(versions)), large)
    state: State = {
        name: torch.full_like(value, 7.0) if isinstance(value, torch.Tensor) else None
        for name, value in whole.items()
    }
    try:
        with Quiet():
            load(state)
    except CheckpointException as error:
        (cause, *_) = (wrapped[0] for _, wrapped in sorted(error.failures.items()))
        return _named(cause)
    except Exception as error:  # noqa: BLE001 - told in words
        return _named(error)
    return which(state, versions, large) or f"a mixture, its step is {state['step']!r}"


def _named(error: BaseException) -> str:
    if isinstance(error, CheckpointIncompleteError):
        return INCOMPLETE
    if isinstance(error, CheckpointNotFoundError):
        return ABSENT
    return f"raised {type(error).__name__}: {error}"
