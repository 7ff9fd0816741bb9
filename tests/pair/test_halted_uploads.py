"""One file of a save fails while parts of another one are in flight: these are not waited for."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
import torch
from support.dcp import Place, failures
from support.scripted import Exchange, Scripted, black_hole, refuse
from torch.distributed.checkpoint.api import CheckpointException

from torch_s3dcp import S3ClientConfig, S3Credentials
from torch_s3dcp.exceptions import AccessDeniedError
from torch_s3dcp.transports import BotoTransport

MIB = 2**20


class Refuses:
    """Refuses the small file when every part of the large one hangs or pauses."""

    def __init__(self, parts: int) -> None:
        self.hanging = threading.Barrier(parts + 1)

    def __call__(self, exchange: Exchange) -> bool:
        if exchange.command == "HEAD":
            return refuse(404)(exchange)
        if exchange.command != "PUT":
            return False
        part = exchange.path.partition("partNumber=")[2][:1]
        self.hanging.wait(30)
        if not part:
            return refuse(403, "AccessDenied")(exchange)
        return (refuse(503, "SlowDown") if part == "2" else black_hole)(exchange)


def test_parts_of_other_files_end(caplog: pytest.LogCaptureFixture) -> None:
    config: dict[str, Any] = {
        "credentials": S3Credentials("key", "secret"),
        "force_path_style": True,
        "part_size": 5 * MIB,
        "pause_factor": 1000,
        "give_up_after": 10_000,
    }
    state = {"large": torch.zeros(14 * MIB // 4), "small": torch.zeros(10)}
    with Scripted() as server:
        server.always = Refuses(parts=3)
        transport = BotoTransport("us-east-1", S3ClientConfig(endpoint_url=server.url, **config))
        place = Place("bucket", transport)
        with pytest.raises(CheckpointException) as caught, caplog.at_level(logging.ERROR):
            place.save(state, "run", thread_count=2)
        seen = [(method, path.partition("?")[2]) for method, path, _ in server.seen]
    (error,) = failures(caught.value)
    assert type(error) is AccessDeniedError, "not what the end of the other file looks like"
    sent = [query for method, query in seen if method == "PUT" and "partNumber" in query]
    assert len(sent) == len(set(sent)) == 3, "none is sent again"
    ended = [query for method, query in seen if method == "DELETE"]
    assert len(ended) == 1, "it is aborted"
    assert seen[-1] == ("POST", "delete"), "what was stored is removed, last of all"
