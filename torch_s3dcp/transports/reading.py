"""HEAD and GET: an object's ranges, each by the shortest way there is."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, cast

from botocore.response import StreamingBody

from ..config import S3ClientConfig
from ..exceptions import PreconditionFailedError, TruncatedObjectError
from .answers import AnswerBody, changed, checked_body, info_of
from .clients import Client
from .contract import ObjectBody, ObjectInfo, check_span, too_short
from .effort import Effort, joined
from .errors import translated
from .options import opening
from .signed import AskAgain

# urllib3 takes new memory for all that it is asked for, and copies from there.
_COPIED_STEP = 1024 * 1024


@dataclass(frozen=True)
class Reading:
    """What is asked of a store to read objects."""

    client: Client
    config: S3ClientConfig

    def head(self, bucket: str, key: str) -> ObjectInfo:
        """As :meth:`Transport.head`."""
        with translated("HeadObject", bucket, key):
            answer = self.client.insisting.head_object(
                Bucket=bucket, Key=key, **opening(self.config)
            )
        return info_of(bucket, key, answer, answer["ContentLength"])

    def get(
        self, bucket: str, key: str, start: int, end: int | None, if_match: str | None
    ) -> ObjectBody:
        """As :meth:`Transport.get`."""
        check_span(start, end)
        if start == end:
            return self._nothing(bucket, key, start, if_match)
        with joined(self.client.limits) as effort:
            retries = 0
            if end is not None and if_match is not None:
                try:
                    signed = self._get_signed(effort, bucket, key, start, end, if_match)
                    if signed is not None:
                        return signed
                except AskAgain:
                    retries = 1
            found = self._get(bucket, key, start, end, if_match)
            found.retries += retries
            return found

    def _get(
        self, bucket: str, key: str, start: int, end: int | None, if_match: str | None
    ) -> ObjectBody:
        """A range, through botocore."""
        options = opening(self.config)
        if start or end is not None:
            options["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        else:
            options["ChecksumMode"] = "ENABLED"
        if if_match is not None:
            options["IfMatch"] = if_match
        span = None if end is None else (start, end)
        try:
            with translated("GetObject", bucket, key, span):
                answer = self.client.insisting.get_object(Bucket=bucket, Key=key, **options)
        except PreconditionFailedError as error:
            raise changed(bucket, key) from error
        except TruncatedObjectError:
            if end is not None:
                raise
            # "All from the end on" is nothing; to HTTP it is an error.
            return self._nothing(bucket, key, start, if_match)
        body = AnswerBody(answer["Body"], bucket, key, whole="Range" not in options)
        body.step = None if self.client.in_place else _COPIED_STEP
        found = checked_body(answer, body, bucket, key, start, end, if_match)
        found.retries = answer["ResponseMetadata"].get("RetryAttempts", 0)
        return found

    def _get_signed(
        self, effort: Effort, bucket: str, key: str, start: int, end: int, etag: str
    ) -> ObjectBody | None:
        """The short way for a further range of an object; None where it does not lead there.

        Raises:
            AskAgain: It failed; ask in the ordinary way, with what is left of the effort.
        """
        ranges = self.client.ranges
        # What it brings as an error says little: never the last try.
        if ranges is None or effort.failures + 1 >= effort.limits.attempts:
            return None
        with translated("GetObject", bucket, key, (start, end)):
            try:
                with effort.working():
                    answer = ranges.get(bucket, key, start, end, etag)
            except AskAgain as again:
                if again.kind and not effort.failed(again.kind, again.error):
                    raise again.error from None
                raise
        if answer is None:
            return None
        # What SignedRanges gives is exactly what was asked for.
        about = {
            "ETag": answer.headers.get("ETag"),
            "ContentLength": end - start,
            "ContentRange": answer.headers.get("Content-Range"),
            "ResponseMetadata": {"HTTPStatusCode": answer.status},
        }
        stream = StreamingBody(cast("Any", answer.body), end - start)
        body = AnswerBody(stream, bucket, key, whole=False)
        return checked_body(about, body, bucket, key, start, end, etag)

    def _nothing(self, bucket: str, key: str, at: int, if_match: str | None) -> ObjectBody:
        """An empty range cannot be written as an HTTP range."""
        info = self.head(bucket, key)
        if if_match is not None and info.etag not in (None, if_match):
            raise changed(bucket, key)
        if at > info.size:
            raise too_short(info, at, at)
        return ObjectBody(io.BytesIO(), info, at, at)
