"""Stored items, decoded the ordinary way and given to all who asked for them."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from torch.distributed.checkpoint.planner import LoadItemType, LoadPlanner, ReadItem

from ._torch import ExtensionRegistry
from .allowed import SafeGlobal
from .blobs import vetted
from .decoding import copy_into, load_tensor, most_bytes, narrow, open_item, read_blob
from .exceptions import InvalidCheckpointError, S3DCPError
from .plan import PlannedItem


@dataclass(frozen=True)
class Serving:
    """How items are decoded.

    Attributes:
        extensions: Undo what the bytes went through when they were written.
        trusted: Whether what is stored may run code.
        safe_globals: What items may name beyond the usual.
    """

    extensions: ExtensionRegistry
    trusted: bool
    safe_globals: Sequence[SafeGlobal]

    def serve(
        self,
        planned: PlannedItem[ReadItem],
        view: IO[bytes],
        planner: LoadPlanner,
        described: Mapping[str, Any],
    ) -> None:
        """Decode one stored item and give it to all who asked for it.

        Args:
            planned: The item.
            view: Its stored bytes.
            planner: Takes what comes of them.
            described: What the metadata says of each name: ``state_dict_metadata``.

        Raises:
            InvalidCheckpointError: The bytes cannot be decoded, or name what is not allowed.
            SizeMismatchError: The planner offers a tensor of another shape.
        """
        blobs = [r for r in planned.requests if r.type == LoadItemType.BYTE_IO]
        tensors = [r for r in planned.requests if r.type != LoadItemType.BYTE_IO]
        limit = None
        if not blobs and planned.stored.transforms:
            limit = most_bytes(described.get(tensors[0].storage_index.fqn))
        item = open_item(view, planned.stored.transforms, self.extensions, limit)
        if blobs:
            data = read_blob(item)
            given = data if self.trusted else vetted(data, self.safe_globals)
            for request in blobs:
                _give_blob(planner, request, given)
            item = io.BytesIO(data)
        if not tensors:
            return
        stored = load_tensor(item, self.safe_globals, trusted=self.trusted)
        for request in tensors:
            part = narrow(stored, request.storage_offsets, request.lengths)
            target = planner.resolve_tensor(request)
            copy_into(target, part)
            planner.commit_tensor(request, target)


def _give_blob(planner: LoadPlanner, request: ReadItem, data: bytes) -> None:
    """Let the planner decode a blob; it knows not where the blob comes from."""
    try:
        planner.load_bytes(request, io.BytesIO(data))
    except (pickle.UnpicklingError, EOFError) as error:
        if isinstance(error, S3DCPError):
            raise
        raise InvalidCheckpointError(
            f"the stored item cannot be decoded: {type(error).__name__}: {error}"
        ) from error
