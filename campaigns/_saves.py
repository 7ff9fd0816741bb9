"""Saves of every kind, each from a state that is known to one that it should come to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch.distributed.checkpoint as dcp

from torch_s3dcp import S3StorageWriter
from torch_s3dcp.transports import Transport

from ._checkpoints import Quiet, model

OLD, NEW, NEXT = 1, 2, 3
# Where the checkpoint lies that a delta save takes from.
BASE = "base"


@dataclass(frozen=True)
class Save:
    """One kind of save: of version ``NEW``, over version ``OLD`` or over nothing.

    Args:
        name: For reports.
        over: Whether ``OLD`` is there before.
        large: Whether it has objects that are uploaded in parts.
        ranks: Processes in a group; 1: none.
        delta: Takes over what it can, from the checkpoint that it replaces ("here") or from
            ``OLD`` at another address ("there").
        background: Through ``dcp.async_save``.
        collectives: As in ``dcp.save``.
        options: Of the writer.
    """

    name: str
    over: bool = True
    large: bool = False
    ranks: int = 1
    delta: str | None = None
    background: bool = False
    collectives: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def before(self) -> set[int]:
        """The versions that may be found before it has begun."""
        return {OLD} if self.over else set()

    def prepare(self, transport: Transport, bucket: str, path: str) -> None:
        """Save what is there before."""
        plain = {"collectives": self.collectives}
        if self.over:
            store(transport, f"s3://{bucket}/{path}", OLD, self.large, **plain, **self.options)
        if self.delta == "there":
            store(transport, f"s3://{bucket}/{path}-{BASE}", OLD, self.large)

    def run(self, transport: Transport, bucket: str, path: str, version: int = NEW) -> None:
        """Save the new version."""
        options = dict(self.options)
        url = f"s3://{bucket}/{path}"
        if self.delta:
            options["delta_from"] = url if self.delta == "here" else f"{url}-{BASE}"
        store(
            transport,
            url,
            version,
            self.large,
            background=self.background,
            collectives=self.collectives,
            **options,
        )


def store(
    transport: Transport,
    url: str,
    version: int,
    large: bool,
    *,
    background: bool = False,
    collectives: bool = True,
    **options: Any,
) -> None:
    """Save a version."""
    writer = S3StorageWriter(url, transport=transport, **options)
    state = dict(model(version, large))
    with Quiet():
        if background:
            future: Any = dcp.async_save(state, storage_writer=writer)
            future.result()
        else:
            dcp.save(state, storage_writer=writer, use_collectives=collectives)


SAVES = (
    Save("first", over=False),
    Save("over"),
    Save("first in parts", over=False, large=True),
    Save("over in parts, 4 threads", large=True, options={"thread_count": 4}),
    Save("a file for each item", options={"single_file_per_rank": False, "thread_count": 4}),
    Save("delta over what it takes from", large=True, delta="here"),
    Save("delta from elsewhere", over=False, large=True, delta="there"),
    Save("without collectives", collectives=False, options={"thread_count": 2}),
    Save("in the background", large=True, background=True, options={"thread_count": 2}),
    Save("2 ranks", ranks=2, options={"thread_count": 2}),
    Save("2 ranks, first, in parts", over=False, ranks=2, large=True, options={"thread_count": 2}),
)
