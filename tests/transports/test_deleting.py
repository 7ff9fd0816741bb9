"""Objects removed many at a time, and what an answer that says 200 refuses of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from support.scripted import Exchange, Scripted, refuse

from torch_s3dcp import S3ClientConfig, S3Credentials
from torch_s3dcp.exceptions import (
    AccessDeniedError,
    DeadlineError,
    StorageError,
    ThrottledError,
)
from torch_s3dcp.transports import BotoTransport


class Deletes:
    """A step that notes the keys of each request and refuses some: by key, then the codes left."""

    def __init__(self, refused: dict[str, list[str]]) -> None:
        self.refused = refused
        self.asked: list[list[str]] = []

    def __call__(self, exchange: Exchange) -> bool:
        keys = re.findall(r"<Key>(.*?)</Key>", exchange.take().decode())
        self.asked.append(keys)
        codes = {key: self.refused[key].pop(0) for key in keys if self.refused.get(key)}
        errors = "".join(
            f"<Error><Key>{key}</Key><Code>{code}</Code><Message>no</Message></Error>"
            for key, code in codes.items()
        )
        exchange.say(200, f"<DeleteResult>{errors}</DeleteResult>".encode())
        return True


@pytest.fixture
def server() -> Iterator[Scripted]:
    with Scripted() as running:
        yield running


def transport_to(server: Scripted, **settings: Any) -> BotoTransport:
    usual: dict[str, Any] = {"max_attempts": 5, "pause_factor": 0.01}
    config = S3ClientConfig(
        endpoint_url=server.url,
        credentials=S3Credentials("key", "secret"),
        force_path_style=True,
        **{**usual, **settings},
    )
    return BotoTransport("us-east-1", config)


@pytest.mark.parametrize("code", ["InternalError", "SlowDown", "OperationAborted"])
def test_what_is_refused_for_now_is_asked_again_alone(server: Scripted, code: str) -> None:
    server.always = deletes = Deletes({"b": [code] * 2, "d": [code]})
    transport_to(server).delete("bucket", list("abcde"))
    assert deletes.asked == [list("abcde"), ["b", "d"], ["b"]]


@pytest.mark.parametrize(
    ("code", "expected"),
    [("AccessDenied", AccessDeniedError), ("MethodNotAllowed", StorageError)],
)
def test_what_is_refused_for_good_is_raised(
    server: Scripted, code: str, expected: type[StorageError]
) -> None:
    """The others are removed, and what is refused for now is asked again besides."""
    server.always = deletes = Deletes({"b": [code], "c": ["SlowDown"], "d": [code]})
    with pytest.raises(expected, match="2 of 5 objects stay") as caught:
        transport_to(server).delete("bucket", list("abcde"))
    assert deletes.asked == [list("abcde"), ["c"]]
    assert (caught.value.bucket, caught.value.key) == ("bucket", "b")
    assert code in str(caught.value)


def test_what_is_refused_for_ever_is_raised(server: Scripted) -> None:
    server.always = deletes = Deletes({"b": ["SlowDown"] * 100})
    with pytest.raises(ThrottledError) as caught:
        transport_to(server).delete("bucket", list("abc"))
    assert deletes.asked == [list("abc")] + [["b"]] * 4
    assert (caught.value.key, caught.value.context["attempts"]) == ("b", 5)


def test_it_ends_by_its_deadline(server: Scripted) -> None:
    server.always = Deletes({"b": ["SlowDown"] * 100})
    transport = transport_to(server, pause_factor=1000, give_up_after=1)
    with pytest.raises(DeadlineError):
        transport.delete("bucket", list("abc"))


def test_what_is_refused_is_told_when_time_is_up(server: Scripted) -> None:
    names = [f"k{number}" for number in range(1500)]
    refused = {name: ["AccessDenied"] for name in names[1:4]}
    server.always = deletes = Deletes({"k0": ["SlowDown"] * 100, **refused})
    transport = transport_to(server, pause_factor=1000, give_up_after=1)
    with pytest.raises(AccessDeniedError, match="4 of 1500 objects stay"):
        transport.delete("bucket", names)
    assert {name for asked in deletes.asked for name in asked} == set(names)


def test_requests_that_fail_and_keys_that_are_refused_are_counted_together(
    server: Scripted,
) -> None:
    server.script = [refuse(503, "SlowDown"), refuse(500, "InternalError")]
    server.always = deletes = Deletes({"b": ["SlowDown"] * 100})
    with pytest.raises(ThrottledError):
        transport_to(server).delete("bucket", list("abc"))
    assert len(deletes.asked) == 3


def test_a_client_of_the_users_own_asks_again_too(server: Scripted) -> None:
    """botocore's own tries look at whole answers only."""
    server.always = deletes = Deletes({"b": ["InternalError"]})
    config = S3ClientConfig(client=transport_to(server).client, pause_factor=0.01)
    BotoTransport(None, config).delete("bucket", list("abc"))
    assert deletes.asked == [list("abc"), ["b"]]


def test_a_refused_batch_does_not_keep_the_others(server: Scripted) -> None:
    server.script = [refuse(403, "AccessDenied")]
    with pytest.raises(AccessDeniedError, match="1000 of 2500 objects stay"):
        transport_to(server).delete("bucket", [f"key-{number}" for number in range(2500)])
    assert len(server.seen) == 3
