"""Addresses of the form ``s3://bucket/key``.

Keys are taken literally: nothing is unquoted, ``//`` stays, ``?`` and ``#`` are
ordinary characters, as S3 itself treats them.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import PurePath

from .exceptions import InvalidURIError

_SCHEME = "s3://"
_FORM = "write it as a string: 's3://bucket/prefix'"
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}\Z")
# Its resource may hold slashes of its own: ``...:accesspoint/name``.
_ACCESS_POINT = re.compile(
    r"arn:[a-z-]+:s3[a-z-]*:[a-z0-9-]*:[0-9]+:(?:outpost[:/][A-Za-z0-9-]+[:/])?"
    r"accesspoint[:/][A-Za-z0-9.-]+(?=/|\Z)"
)


@dataclass(frozen=True)
class S3URI:
    """A bucket and a key (or a key prefix, possibly empty)."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"{_SCHEME}{self.bucket}/{self.key}" if self.key else f"{_SCHEME}{self.bucket}"

    def join(self, suffix: str) -> S3URI:
        """The address of ``suffix`` below this one; exactly one ``/`` between the two."""
        return S3URI(self.bucket, f"{self.key}/{suffix}" if self.key else suffix)


def parse_uri(address: str | os.PathLike[str]) -> S3URI:
    """Split an address into bucket and key.

    Slashes at the end are dropped: ``s3://b/run/`` and ``s3://b/run`` name one place.

    Raises:
        InvalidURIError: Not a string, not ``s3://``, or without a usable bucket name.
    """
    if isinstance(address, PurePath):
        raise InvalidURIError(
            f"{address!r} cannot name an S3 location: a Path turns 's3://' into 's3:/'; {_FORM}"
        )
    text = os.fspath(address) if isinstance(address, os.PathLike) else address
    if not isinstance(text, str):
        raise InvalidURIError(f"an S3 location must be a string, not {type(address)!r}; {_FORM}")
    if not text.startswith(_SCHEME):
        raise InvalidURIError(f"{_shown(text)!r} is not an S3 location{_hint(text)}; {_FORM}")
    rest = text[len(_SCHEME) :]
    access_point = _ACCESS_POINT.match(rest)
    bucket = access_point.group() if access_point else rest.partition("/")[0]
    if not bucket:
        raise InvalidURIError(f"{text!r} has no bucket name; {_FORM}")
    if not access_point and not _BUCKET.match(bucket):
        raise InvalidURIError(f"{_shown(text)!r} does not begin with a bucket name; {_FORM}")
    return S3URI(bucket, rest[len(bucket) + 1 :].rstrip("/"))


def _shown(text: str) -> str:
    """An address that is refused, without what may be secret: a login, a signed query."""
    return re.sub(r"//.*@", "//...@", text.partition("?")[0])


def _hint(text: str) -> str:
    lowered = text.lower()
    if lowered.startswith("s3:/") and not lowered.startswith("s3://"):
        return " (one slash is missing, often because it went through pathlib)"
    if lowered.startswith(_SCHEME):
        return " (the scheme is written in lower case)"
    if lowered.startswith(("http://", "https://")):
        return " (pass a web address as S3ClientConfig(endpoint_url=...), not as the path)"
    return ""


def is_uri(address: object) -> bool:
    """Whether :func:`parse_uri` would accept the value."""
    try:
        parse_uri(address)  # type: ignore[arg-type]
    except InvalidURIError:
        return False
    return True


def order_location(
    path: str | os.PathLike[str], region: str | os.PathLike[str] | None
) -> tuple[str | os.PathLike[str], str | None]:
    """Accept ``(path, region)`` and s3torchconnector's ``(region, path)``.

    The two cannot be confused: a region never holds a slash or a colon. Whether the path is
    a good one is for :func:`parse_uri` to say.

    Raises:
        InvalidURIError: The region is not one.
    """
    if region is not None and _may_be_path(region) and (not path or not _may_be_path(path)):
        path, region = region, path
    if region is not None and (not isinstance(region, str) or _may_be_path(region)):
        raise InvalidURIError(f"the region must be a string such as 'eu-west-1', not {region!r}")
    return path, region or None


def _may_be_path(value: object) -> bool:
    return not isinstance(value, str) or "/" in value or ":" in value
