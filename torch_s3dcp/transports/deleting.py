"""Objects removed many at a time. An answer that says 200 may still refuse some of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..exceptions import AccessDeniedError, DeadlineError, StorageError
from .effort import Effort, joined
from .errors import refusal, translated
from .failures import kind_of_code
from .retries import Kind, Limits

_BATCH = 1000


def delete_objects(
    client: Any, limits: Limits, bucket: str, names: Sequence[str], options: Mapping[str, Any]
) -> None:
    """Remove objects, by as few requests as can be.

    Args:
        client: Makes the requests; tries again those that fail as a whole.
        limits: How long to insist on keys that are refused for now.
        options: What each request carries besides.

    Raises:
        StorageError: Some are refused; it is that of the first, and says how many there are.
    """
    refused: list[StorageError] = []
    for cut in range(0, len(names), _BATCH):
        # What is refused of one batch says nothing about the others.
        with joined(limits) as effort:
            batch = names[cut : cut + _BATCH]
            refused += _batch(client, effort, bucket, batch, options)
    if refused:
        more = f"; {len(refused)} of {len(names)} objects stay" if len(refused) > 1 else ""
        raise type(refused[0])(refused[0].message + more, **refused[0].context)


def _batch(
    client: Any, effort: Effort, bucket: str, names: Sequence[str], options: Mapping[str, Any]
) -> Iterator[StorageError]:
    """Remove objects by one request, and one more for those that are refused for now.

    Yields:
        What is refused for good.
    """
    while names:
        listed = {"Objects": [{"Key": name} for name in names], "Quiet": True}
        try:
            with translated("DeleteObjects", bucket):
                answer = client.delete_objects(Bucket=bucket, Delete=listed, **options)
        except AccessDeniedError as error:
            yield from [error] * len(names)
            return
        about = {"RetryAttempts": effort.failures}
        passing: dict[str, tuple[Kind, StorageError]] = {}
        for failure in answer.get("Errors", []):
            key = failure.get("Key")
            where = {"operation": "DeleteObjects", "bucket": bucket, "key": key}
            refused = refusal(failure, where, about)
            kind = kind_of_code(failure.get("Code", ""))
            # Credentials are looked for anew where a whole request is refused.
            if kind is None or kind is Kind.EXPIRED or key not in names:
                yield refused
            else:
                passing[key] = kind, refused
        if not passing:
            return
        try:
            again = effort.failed(*next(iter(passing.values())))
        except DeadlineError as error:
            # Time is up for these keys; what else is refused is told too.
            yield from [error] * len(passing)
            return
        if not again:
            yield from (refused for _, refused in passing.values())
            return
        names = list(passing)
