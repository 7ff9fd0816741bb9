"""A boto3 client that insists: every request goes through the one loop."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

from botocore.exceptions import ClientError

from .effort import joined
from .failures import kind_of
from .retries import Kind, Limits
from .scrubbing import scrub

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client as Boto3S3Client

_log = logging.getLogger(__name__)


class Renewable(Protocol):
    """Who has the boto3 client."""

    boto: Boto3S3Client
    #: Counts the clients so far.
    generation: int

    def renew(self, generation: int) -> bool:
        """Have a client with new credentials instead of that one; False where there is none."""
        ...

    def accepted(self, generation: int) -> None:
        """The server has accepted the credentials of that one."""
        ...


class RetryingClient:
    """To be called like the boto3 client behind it; its methods are S3's operations.

    The count of failed tries is added to ``RetryAttempts`` of an answer, and of an error's.

    Args:
        held: Has the client.
        limits: How long to insist.
    """

    def __init__(self, held: Renewable, limits: Limits) -> None:
        self._held = held
        self.limits = limits

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        boto = self._held.boto
        asks = name in boto.meta.method_to_api_mapping
        return partial(self._ask, name) if asks else getattr(boto, name)

    def _ask(self, name: str, **parameters: Any) -> Any:
        failures = 0
        with joined(self.limits) as effort:
            while True:
                held, generation = self._held, self._held.generation
                try:
                    with effort.working():
                        answer = _done(getattr(held.boto, name)(**parameters), name)
                except Exception as error:
                    scrub(error)
                    tries = _tries(error)
                    failures += tries
                    kind = kind_of(error)
                    if kind not in self.limits.kinds:
                        kind = None
                    again = effort.failed(kind, error, self.limits.attempts, tries)
                    if not again or (kind is Kind.EXPIRED and not held.renew(generation)):
                        _note(error, max(failures, effort.failures))
                        raise
                    _tell(name, kind, parameters)
                    rewind = getattr(parameters.get("Body"), "seek", None)
                    if rewind is not None:
                        rewind(0)
                else:
                    held.accepted(generation)
                    about = answer["ResponseMetadata"]
                    about["RetryAttempts"] = about.get("RetryAttempts", 0) + failures
                    return answer


def _done(answer: Any, name: str) -> Any:
    """What botocore takes for an answer; of "300 Multiple Choices", too, though nothing is done.

    Raises:
        ClientError: It is that.
    """
    status = answer["ResponseMetadata"].get("HTTPStatusCode")
    if status == HTTPStatus.MULTIPLE_CHOICES:
        refused: Any = {**answer, "Error": {"Code": str(status), "Message": ""}}
        raise ClientError(refused, name)
    return answer


def _tell(name: str, kind: Kind | None, parameters: Mapping[str, Any]) -> None:
    place = f"s3://{parameters.get('Bucket')}/{parameters.get('Key', '')}"
    if kind is Kind.DAMAGED:
        _log.warning("%s: bytes were damaged on the way; sending them again", place)
    else:
        _log.debug("%s of %s is tried again: %s", name, place, kind and kind.value)


def _tries(error: Exception) -> int:
    """How often the request was made: botocore follows a bucket to its region by itself."""
    if isinstance(error, ClientError):
        return 1 + int(error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0))
    return 1


def _note(error: Exception, tries: int) -> None:
    """Where the translation of errors finds it."""
    if isinstance(error, ClientError):
        about: Any = error.response.setdefault("ResponseMetadata", {})  # type: ignore[typeddict-item]
        about["RetryAttempts"] = tries - 1
    else:
        error.attempts = tries  # type: ignore[attr-defined]
