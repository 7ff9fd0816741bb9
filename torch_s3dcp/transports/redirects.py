"""Redirects: none is followed, but for the one that S3 means by "another region".

Neither botocore's sender nor ours follows a ``Location``. Where a server names the region of the
bucket, botocore signs for that and asks again: at the endpoint that was given, or on AWS at the one
that its own rules name for that region. Where the server names none, botocore asks HeadBucket for
it. If that is redirected as well, it would ask HeadBucket again, without end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client as Boto3S3Client

_REGION = "x-amz-bucket-region"


def end_redirects(client: Boto3S3Client) -> None:
    """Let a client give up where not even HeadBucket says in which region a bucket is."""
    handler: Any = _give_up
    client.meta.events.register_first("needs-retry.s3.HeadBucket", handler)


def _give_up(request_dict: Any, response: Any, **_: Any) -> None:
    if response is not None and not region_of(response[1]):
        # What botocore notes once it has followed.
        request_dict["context"].setdefault("s3_redirect", {})["redirected"] = True


def region_of(answer: Mapping[str, Any]) -> str:
    """The bucket's region as an answer names it, or nothing."""
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return str(headers.get(_REGION) or answer.get("Error", {}).get("Region") or "")


def redirected_to(answer: Mapping[str, Any]) -> str:
    """The server that an answer sends the client to, without a login; or nothing."""
    about: Any = answer.get("ResponseMetadata", {})
    location = about.get("HTTPHeaders", {}).get("location", "")
    redirect = 300 <= (about.get("HTTPStatusCode") or 0) < 400
    if not (redirect and location) or region_of(answer):
        return ""
    try:
        to = urlsplit(location)
    except ValueError:
        return "what is no address"
    return f"{to.scheme}://{to.netloc.rpartition('@')[2]}" if to.netloc else "another path"
