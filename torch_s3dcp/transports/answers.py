"""Answers to GETs: what their headers say, and their bodies."""

from __future__ import annotations

import contextlib
import logging
import re
from typing import TYPE_CHECKING, Any, cast

from ..exceptions import ObjectChangedError, TruncatedObjectError, WrongRangeError
from .contract import ObjectBody, ObjectInfo, RawBody, too_short
from .errors import translated

if TYPE_CHECKING:
    from botocore.response import StreamingBody

_log = logging.getLogger(__name__)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)\Z")
_PARTIAL_CONTENT = 206
_SKIP_BLOCK = 1024 * 1024


class AnswerBody:
    """botocore's body with errors translated, and a whole object's checksum checked."""

    def __init__(self, body: StreamingBody, bucket: str, key: str, *, whole: bool) -> None:
        # botocore >= 1.36 reads into any buffer; its type stubs say otherwise.
        self._body = cast("RawBody", body)
        self._bucket = bucket
        self._key = key
        self._whole = whole
        self.left: int | None = None
        #: Bytes to ask for at once, at most.
        self.step: int | None = None

    def readinto(self, buffer: memoryview, /) -> int:
        with translated("GetObject", self._bucket, self._key):
            count = self._body.readinto(memoryview(buffer)[: self.step]) or 0
            if self.left is not None:
                self.left -= count
                if self._whole and not self.left:
                    # botocore compares the checksum when a read finds the end.
                    self._body.readinto(memoryview(bytearray(1)))
        return count

    def skip(self, count: int) -> None:
        """Throw away ``count`` bytes of a body that began before the range."""
        scratch = memoryview(bytearray(min(count, _SKIP_BLOCK)))
        while count:
            got = self.readinto(scratch[:count])
            if not got:
                raise TruncatedObjectError("the body ended early", bucket=self._bucket)
            count -= got

    def close(self) -> None:
        self._body.close()


def checked_body(
    answer: Any,
    body: AnswerBody,
    bucket: str,
    key: str,
    start: int,
    end: int | None,
    if_match: str | None,
) -> ObjectBody:
    """The body of an answer, whose headers are compared with what was asked for."""
    with contextlib.ExitStack() as refused:
        refused.callback(body.close)
        if if_match is not None and answer.get("ETag", if_match) != if_match:
            # Servers exist that ignore If-Match.
            raise changed(bucket, key)
        asked: dict[str, Any] = {"bucket": bucket, "key": key}
        served = _CONTENT_RANGE.match(answer.get("ContentRange") or "")
        partial = answer["ResponseMetadata"].get("HTTPStatusCode") == _PARTIAL_CONTENT
        if "ContentLength" not in answer or (partial and served is None):
            raise WrongRangeError("the server did not say which bytes it sends", **asked)
        length = int(answer["ContentLength"])
        first, last, size = (
            (int(served[1]), int(served[2]) + 1, int(served[3])) if served else (0, length, length)
        )
        wanted_end = size if end is None else end
        asked["byte_range"] = (start, wanted_end)
        info = info_of(bucket, key, answer, size)
        if size < wanted_end or start > size:
            raise too_short(info, start, wanted_end)
        if first > start or last < wanted_end or (served and last - first != length):
            raise WrongRangeError(
                f"the server sent {length} bytes as [{first}, {last}) of {size}", **asked
            )
        body.left = length
        if first < start:
            _log.warning("s3://%s/%s: the server ignored the range; skipping to it", bucket, key)
            body.skip(start - first)
        found = ObjectBody(body, info, start, wanted_end)
        refused.pop_all()
        return found


def changed(bucket: str, key: str) -> ObjectChangedError:
    """The error for an object that is another than before."""
    return ObjectChangedError(
        "the object was replaced while it was being read; load again",
        bucket=bucket,
        key=key,
        operation="GetObject",
    )


def info_of(bucket: str, key: str, answer: Any, size: int) -> ObjectInfo:
    """An object's description from botocore's."""
    return ObjectInfo(
        bucket,
        key,
        size,
        answer.get("ETag"),
        answer.get("LastModified"),
        answer.get("StorageClass"),
        answer.get("Metadata") or {},
    )
