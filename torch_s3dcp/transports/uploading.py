"""Uploads straight from the memory where their bytes lie, in one request or in parts.

Many parts are in flight over all uploads of a client, bounded in number and in bytes. Each
is sent with its checksum, and so is the whole object, so that the server refuses what was
damaged on the way; where the server does not repeat the checksum, it is asked what it has.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

from .blocks import Blocks
from .contract import BlockSource, CopiedRange, Uploaded
from .errors import translated
from .multipart import Multipart
from .sending import Body, Sender, Target


class Uploader(Sender):
    """Uploads objects through a boto3 client."""

    def upload(self, target: Target, source: BlockSource, part_size: int) -> Uploaded:
        """Store all that the source has; visible only when complete.

        Raises:
            S3DCPError: A request failed for good.
            BaseException: Whatever the source raised. Nothing stays behind then.
        """
        bodies = bodies_of(source, part_size)
        first = deque(islice(bodies, 2))
        if len(first) > 1:
            return Multipart(self, target, source).run(_handed_out(first, bodies))
        return self._put(target, first.pop() if first else Body(source, 0, Blocks(())))

    def compose(
        self, target: Target, copied: Sequence[CopiedRange], source: BlockSource, part_size: int
    ) -> Uploaded:
        """Store ranges of other objects, and behind them all that the source has."""
        return Multipart(self, target, source).run(chain(copied, bodies_of(source, part_size)))

    def _put(self, target: Target, body: Body) -> Uploaded:
        self._room.enter(len(body))
        try:
            value = body.checksum(target.checksum)
            with translated("PutObject", target.bucket, target.key):
                answer: Any = self.client.put_object(
                    Body=body.blocks,
                    **target.place,
                    **target.storing,
                    **target.with_data(value),
                )
                target.count(answer)
            body.release()
        finally:
            self._room.leave(len(body))
        return self.confirmed(target, answer, len(body), target.said(value))


def bodies_of(source: BlockSource, part_size: int) -> Iterator[Body]:
    """All that a source has, in parts."""
    start = 0
    while blocks := source.take(part_size):
        body = Body(source, start, Blocks(blocks))
        del blocks
        start += len(body)
        yield body
        del body  # from here on the request alone keeps it


def _handed_out(first: deque[Body], rest: Iterable[Body]) -> Iterator[Body]:
    """The first ones, then the rest; none is kept here once it was handed out."""
    return chain((first.popleft() for _ in range(len(first))), rest)
