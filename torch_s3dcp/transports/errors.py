"""botocore's errors become this package's, here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import urllib3.exceptions
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from ..exceptions import (
    AccessDeniedError,
    BucketNotFoundError,
    ConfigurationError,
    CredentialsError,
    DeadlineError,
    EndpointError,
    IntegrityError,
    ObjectNotFoundError,
    PreconditionFailedError,
    S3DCPError,
    StorageError,
    ThrottledError,
    TruncatedObjectError,
    WrongRegionError,
)
from .redirects import redirected_to, region_of
from .scrubbing import clean, scrub

_BY_CODE: tuple[tuple[type[StorageError], str, frozenset[str]], ...] = (
    (
        BucketNotFoundError,
        "the bucket does not exist; check its name and the endpoint",
        frozenset({"NoSuchBucket"}),
    ),
    (
        ObjectNotFoundError,
        "the object does not exist",
        frozenset({"NoSuchKey", "404", "NotFound"}),
    ),
    (
        AccessDeniedError,
        "access denied; the keys are wrong or lack a permission for this",
        frozenset(
            {
                "AccessDenied",
                "403",
                "Forbidden",
                "AllAccessDisabled",
                "UnauthorizedAccess",
            }
        ),
    ),
    (
        CredentialsError,
        "the server does not accept the credentials",
        frozenset(
            {
                "InvalidAccessKeyId",
                "SignatureDoesNotMatch",
                "ExpiredToken",
                "ExpiredTokenException",
                "InvalidToken",
                "TokenRefreshRequired",
                "RequestExpired",
                "RequestTimeTooSkewed",
                "401",
            }
        ),
    ),
    (
        WrongRegionError,
        "the bucket is in another region",
        frozenset(
            {
                "PermanentRedirect",
                "AuthorizationHeaderMalformed",
                "IllegalLocationConstraintException",
                "301",
                "307",
            }
        ),
    ),
    (
        PreconditionFailedError,
        "the object is not in the expected state",
        frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}),
    ),
    (
        TruncatedObjectError,
        "the object is shorter than the range that was asked for",
        frozenset({"InvalidRange", "416"}),
    ),
    (
        ThrottledError,
        "the server kept asking to slow down; use fewer ranks or a prefix strategy",
        frozenset(
            {
                "SlowDown",
                "ServiceUnavailable",
                "Throttling",
                "ThrottlingException",
                "TooManyRequests",
                "RequestLimitExceeded",
                "503",
                "429",
            }
        ),
    ),
)

# What S3 wants to see allowed, where the operation's own name does not say it.
_PERMISSIONS = {
    "HeadObject": "s3:GetObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "Upload": "s3:PutObject",
    "UploadPartCopy": "s3:GetObject of what is copied, s3:PutObject",
    "CopyObject": "s3:GetObject of what is copied, s3:PutObject",
    "DeleteObjects": "s3:DeleteObject",
    "ListObjectsV2": "s3:ListBucket",
}

_BAD_HEAD = (
    "; S3 says so of an object that was stored with an sse_customer_key when asked without it, of "
    "one stored without when asked with it, and to temporary credentials that have expired"
)

_CREDENTIAL_ERRORS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.NoAuthTokenError,
    boto.TokenRetrievalError,
    boto.SSOError,
    boto.MetadataRetrievalError,
)
_CONFIGURATION_ERRORS = (
    boto.NoRegionError,
    boto.ParamValidationError,
    boto.ValidationError,
    boto.ProfileNotFound,
    boto.ConfigNotFound,
    boto.ConfigParseError,
    boto.InvalidConfigError,
    boto.MissingDependencyException,
    boto.UnsupportedS3ArnError,
    boto.EndpointProviderError,
    boto.InvalidS3AddressingStyleError,
)


@contextmanager
def _scrubbed() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        scrub(error)
        raise


@contextmanager
def translated(
    operation: str,
    bucket: str,
    key: str | None = None,
    byte_range: tuple[int, int] | None = None,
) -> Iterator[None]:
    """Raise what happens inside as an error of this package that says where it happened."""
    where: dict[str, Any] = {
        "operation": operation,
        "bucket": bucket or None,
        "key": key,
        "byte_range": byte_range,
    }
    try:
        with _scrubbed():
            yield
    except boto.ClientError as error:
        raise _from_answer(error, where) from error
    except boto.FlexibleChecksumError as error:
        raise IntegrityError(f"the object is damaged: {clean(error)}", **where) from error
    except boto.IncompleteReadError as error:
        raise TruncatedObjectError(f"the body ended early: {clean(error)}", **where) from error
    except _CREDENTIAL_ERRORS as error:
        raise CredentialsError(
            f"no usable credentials: {clean(error)}; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, a profile or an instance role, or "
            "S3ClientConfig(unsigned=True) for public buckets",
            **where,
        ) from error
    except _CONFIGURATION_ERRORS as error:
        raise ConfigurationError(f"the request cannot be made: {clean(error)}", **where) from error
    except (boto.HTTPClientError, boto.ConnectionError, boto.BotoCoreError) as error:
        text = f"the server cannot be reached: {clean(error)}"
        raise EndpointError(text, **_tried(error, where)) from error
    except ResponseParserError as error:
        text = "the server's answer cannot be read: it is cut off, or not S3's"
        raise EndpointError(text, **_tried(error, where)) from error
    except DeadlineError as error:
        raise error.locate(**where) from error.__cause__
    except (urllib3.exceptions.HTTPError, OSError) as error:
        if isinstance(error, S3DCPError):
            raise
        raise EndpointError(
            f"the connection broke: {type(error).__name__}: {clean(error)}", **where
        ) from error


def _tried(error: Exception, where: dict[str, Any]) -> dict[str, Any]:
    """Where it happened, and how often it was tried."""
    attempts = getattr(error, "attempts", 1)
    return {**where, "attempts": attempts} if attempts > 1 else where


def code_of(error: boto.ClientError) -> str:
    """The server's word for what it refused."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _from_answer(error: boto.ClientError, where: dict[str, Any]) -> StorageError:
    answer: Any = error.response
    return refusal(answer.get("Error", {}), where, answer.get("ResponseMetadata", {}))


def refusal(
    details: Mapping[str, Any], where: Mapping[str, Any], about: Mapping[str, Any] | None = None
) -> StorageError:
    """The error that fits a server's error code, or failing that the status of its answer.

    Args:
        details: ``Code`` and ``Message``, as the server gave them.
        where: Context of the error.
        about: botocore's ``ResponseMetadata``, where the code came with an answer of its own.
    """
    about = about or {}
    code = str(details.get("Code", ""))
    status = str(about.get("HTTPStatusCode", ""))
    attempts = about.get("RetryAttempts")
    context = {
        **where,
        "request_id": about.get("RequestId") or None,
        "attempts": attempts + 1 if attempts else None,
    }
    said = clean(f"{code}: {details.get('Message', '')}".strip(": "))
    elsewhere = redirected_to({"ResponseMetadata": about, "Error": details})
    if elsewhere:
        return StorageError(
            f"the server redirects to {elsewhere} (HTTP {status}); that is not followed, since the "
            "credentials are for the endpoint alone: check endpoint_url",
            **context,
        )
    for name in (code, status):
        for cls, meaning, codes in _BY_CODE:
            if name in codes:
                text = meaning + _region_hint(cls, about, details)
                if cls is AccessDeniedError:
                    text += _permission_hint(where.get("operation"))
                return cls(text if name == said else f"{text} [{said}]", **context)
    text = f"the server refused: {said}" + (f" (HTTP {status})" if status else "")
    # The answer to a HEAD has no text that would say why.
    return StorageError(text + (_BAD_HEAD if code == "400" else ""), **context)


def _permission_hint(operation: str | None) -> str:
    if operation is None:
        return ""
    needed = _PERMISSIONS.get(operation, f"s3:{operation}")
    if operation in ("HeadObject", "GetObject"):
        return f", {needed} (S3 also says so of missing objects to those without s3:ListBucket)"
    return f", {needed}"


def _region_hint(cls: type[StorageError], about: Any, details: Any) -> str:
    if cls is not WrongRegionError:
        return ""
    region = region_of({"ResponseMetadata": about, "Error": details})
    return f"; pass region={region!r}" if region else "; pass the bucket's region"
