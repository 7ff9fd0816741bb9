"""What a halt does to requests that are under way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.scripted import Scripted, Step, black_hole, lost, refuse

from torch_s3dcp import S3ClientConfig, S3Credentials
from torch_s3dcp.exceptions import EndpointError, ThrottledError
from torch_s3dcp.transports import BotoTransport
from torch_s3dcp.transports.effort import Halt, halted_by

SLOW = refuse(503, "SlowDown")


@pytest.fixture
def plain() -> Iterator[Scripted]:
    with Scripted() as running:
        yield running


def transport_to(server: Scripted) -> BotoTransport:
    keys = S3Credentials("key", "secret")
    config = S3ClientConfig(
        endpoint_url=server.url, credentials=keys, force_path_style=True, pause_factor=0.01
    )
    return BotoTransport("us-east-1", config)


def test_a_halt_ends_the_wait_for_an_answer(plain: Scripted) -> None:
    halt = Halt()

    def waits(exchange: Any) -> bool:
        halt.set()
        return black_hole(exchange)

    plain.always = waits
    with halted_by(halt), pytest.raises(EndpointError):
        transport_to(plain).head("bucket", "key")
    assert len(plain.seen) == 1


def test_a_halt_ends_the_wait_for_the_rest_of_an_answer(plain: Scripted) -> None:
    halt = Halt()

    def begins(exchange: Any) -> bool:
        exchange.say(200, b"<Lis", size=1000)
        exchange.script.released.wait(0.5)  # the head has come by then
        halt.set()
        exchange.script.released.wait(60)
        exchange.close_connection = True
        return True

    plain.always = begins
    with halted_by(halt), pytest.raises(EndpointError, match="closed"):
        list(transport_to(plain).list("bucket"))
    assert len(plain.seen) == 1


@pytest.mark.parametrize("step", [SLOW, lost])
def test_a_halt_lets_what_changes_something_come_to_its_end(plain: Scripted, step: Step) -> None:
    """It is not cut short: it might take effect later. But it is not tried again."""
    halt = Halt()

    def answers_late(exchange: Any) -> bool:
        halt.set()
        exchange.script.released.wait(0.5)
        return False

    plain.always = answers_late
    with halted_by(halt):
        transport_to(plain).delete("bucket", ["key"])
        plain.always = step
        with pytest.raises((ThrottledError, EndpointError)):
            transport_to(plain).delete("bucket", ["key"])
    assert len(plain.seen) == 2
