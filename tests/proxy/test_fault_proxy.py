"""Each fault of the proxy, as a client sees it, in front of a scripted server."""

from __future__ import annotations

import http.client
import re
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from support.origin import BLOB, END, START, WANTED, Answer, Origin, ask, connect, origin

from torch_s3dcp.exceptions import ConfigurationError
from torch_s3dcp.testing import FaultProxy, faults

# --- without a fault --------------------------------------------------------------------


def test_requests_pass_as_they_came(server: Origin, proxy: FaultProxy) -> None:
    headers = {"Host": "signed.example", "X-Amz-Meta-A": "b", "Authorization": "a-signature"}
    answer = ask(proxy, "PUT", "/b/a%20b//%C3%BC?x=%2F", body=b"abc" * 100_000, headers=headers)
    ((method, target, seen, body),) = server.got
    assert (answer.status, method, target) == (200, "PUT", "/b/a%20b//%C3%BC?x=%2F")
    assert headers.items() <= seen.items()
    assert body == b"abc" * 100_000


def test_answers_pass_as_they_came(proxy: FaultProxy) -> None:
    answer = ask(proxy)
    assert (answer.status, answer.data) == (206, WANTED)
    assert answer.headers["Content-Range"] == f"bytes {START}-{END - 1}/{len(BLOB)}"
    assert ask(proxy, "HEAD").headers["Content-Length"] == str(len(BLOB))
    assert ask(proxy, target="/b/chunked").data == BLOB


def test_a_chunked_body_arrives(server: Origin, proxy: FaultProxy) -> None:
    pieces = [b"a" * 3, b"b" * 70_000, b"c"]
    ask(proxy, "PUT", body=iter(pieces))  # http.client cuts it into chunks
    assert server.got[0][3] == b"".join(pieces)


def test_connections_are_kept(server: Origin, proxy: FaultProxy) -> None:
    client = connect(proxy)
    for number in range(3):
        client.request("PUT", f"/b/{number}", body=b"x" * number)
        assert Answer(client).status == 200
    assert client.sock is not None
    client.close()
    assert [target for _, target, _, _ in server.got] == ["/b/0", "/b/1", "/b/2"]


def test_many_at_once(proxy: FaultProxy) -> None:
    found: list[bytes] = []
    gate = threading.Barrier(64)

    def one() -> None:
        gate.wait()
        found.append(ask_alone(proxy))

    threads = [threading.Thread(target=one) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [BLOB] * 64


def ask_alone(proxy: FaultProxy) -> bytes:
    client = connect(proxy)
    client.request("GET", "/b/k")
    data = client.getresponse().read()
    client.close()
    return data


def test_expect_continue(server: Origin, proxy: FaultProxy) -> None:
    with socket.create_connection(("127.0.0.1", port_of(proxy)), timeout=20) as raw:
        raw.sendall(
            b"PUT /b/k HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        )
        assert raw.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.sendall(b"abc")
        assert raw.recv(1000).startswith(b"HTTP/1.1 200")
    assert server.got[0][3] == b"abc"


def port_of(proxy: FaultProxy) -> int:
    return int(proxy.endpoint_url.rpartition(":")[2])


def test_a_server_that_is_gone() -> None:
    with origin() as server:
        address = server.endpoint_url
    with FaultProxy(address) as proxy:
        with pytest.raises(ConnectionError):
            ask(proxy)
        (entry,) = proxy.log
    assert entry.status is None
    assert "cannot be reached" in str(entry.problem)


# --- faults before the server -----------------------------------------------------------


def test_a_reply(server: Origin, proxy: FaultProxy) -> None:
    proxy.add(faults.Reply(503, "SlowDown", retry_after=2, headers=(("X-A", "b"),)), count=1)
    answer = ask(proxy, "PUT", body=b"abc")
    assert (answer.status, answer.headers["Retry-After"], answer.headers["X-A"]) == (503, "2", "b")
    assert re.search(rb"<Error><Code>SlowDown</Code>", answer.data)
    assert not server.got
    assert ask(proxy, "PUT", body=b"abc").status == 200


@pytest.mark.parametrize("acted", [False, True])
def test_200_with_an_error(server: Origin, proxy: FaultProxy, acted: bool) -> None:
    proxy.add(faults.Reply(200, "InternalError", acted=acted), operation="CompleteMultipartUpload")
    answer = ask(proxy, "POST", "/b/k?uploadId=u", body=b"<x/>")
    assert (answer.status, b"<Code>InternalError" in answer.data) == (200, True)
    assert len(server.got) == len(proxy.log.mutations()) == acted


def test_a_reply_to_head_has_no_body(proxy: FaultProxy) -> None:
    proxy.add(faults.Reply(403, "AccessDenied"), count=1)
    client = connect(proxy)
    for status in (403, 200):
        client.request("HEAD", "/b/k")
        answer = client.getresponse()
        assert (answer.status, answer.read()) == (status, b"")
    client.close()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect(server: Origin, proxy: FaultProxy, status: int) -> None:
    proxy.add(faults.Redirect("http://other.example{target}", status))
    answer = ask(proxy, target="/b/k?versionId=1")
    assert answer.status == status
    assert answer.headers["Location"] == "http://other.example/b/k?versionId=1"
    assert not server.got


@pytest.mark.parametrize("when", ["request", "unseen", "answer"])
def test_resets_without_an_answer(server: Origin, proxy: FaultProxy, when: Any) -> None:
    proxy.add(faults.Reset(when))
    with pytest.raises(ConnectionResetError):
        ask(proxy, "PUT", body=b"abc" * 10)
    assert len(server.got) == len(proxy.log.mutations()) == (when == "answer")


def test_a_reset_amid_an_upload(server: Origin, proxy: FaultProxy) -> None:
    proxy.add(faults.Reset("upload", after=1000))
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        ask(proxy, "PUT", body=bytes(5_000_000))
    assert [entry.sent for entry in proxy.log] == [1000]
    assert not proxy.log.mutations()


def test_late_requests_arrive_when_released(server: Origin, proxy: FaultProxy) -> None:
    proxy.add(faults.Late(), count=2)
    for body in (b"first", b"second"):
        with pytest.raises(ConnectionResetError):
            ask(proxy, "PUT", body=body)
    ask(proxy, "PUT", body=b"third")
    assert [entry[3] for entry in server.got] == [b"third"]
    proxy.release()
    proxy.release()
    assert [m.body for m in proxy.log.mutations()] == [b"third", b"first", b"second"]
    assert [entry[3] for entry in server.got] == [b"third", b"first", b"second"]


def test_garbage(proxy: FaultProxy) -> None:
    proxy.add(faults.Garbage(), count=1)
    with pytest.raises(http.client.BadStatusLine):
        ask(proxy)
    assert ask(proxy).data == WANTED


def test_a_black_hole(server: Origin, proxy: FaultProxy) -> None:
    proxy.add(faults.BlackHole())
    client = connect(proxy)
    client.request("PUT", "/b/k", body=bytes(3_000_000))  # all of it is taken
    client.sock.settimeout(0.3)
    with pytest.raises(TimeoutError):
        client.getresponse()
    client.close()
    proxy.log.settle()
    assert not server.got


def test_a_delay(server: Origin, proxy: FaultProxy) -> None:
    proxy.add(faults.Delay(0.2), count=1)
    begin = time.monotonic()
    assert ask(proxy).data == WANTED
    assert time.monotonic() - begin >= 0.2


def test_a_delayed_request_of_a_client_that_left_is_not_sent(
    server: Origin, proxy: FaultProxy
) -> None:
    proxy.add(faults.Delay(600))
    client = connect(proxy)
    client.request("PUT", "/b/k", body=b"abc")
    client.close()
    while not len(proxy.log):
        time.sleep(0.01)
    proxy.log.settle()
    assert not server.got


# --- faults in a body -------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 1, 12_345, None])
def test_fin_and_rst_within_a_body(proxy: FaultProxy, after: int | None) -> None:
    for fault, kind in (
        (faults.Truncate(after), http.client.IncompleteRead),
        (faults.Reset("body", after), ConnectionResetError),
    ):
        rule = proxy.add(fault)
        answer = ask(proxy)
        proxy.remove(rule)
        assert isinstance(answer.error, kind)
        assert answer.headers["Content-Length"] == str(len(WANTED))
        assert answer.data == WANTED[: len(answer.data)]
        if after is not None:
            assert len(answer.data) == after


def test_a_short_answer_agrees_with_itself(proxy: FaultProxy) -> None:
    proxy.add(faults.Shorten(300), count=1)
    proxy.add(faults.Shorten())
    for size in (len(WANTED) - 300, None):
        answer = ask(proxy)
        assert answer.error is None
        assert 0 <= len(answer.data) < len(WANTED)
        assert size is None or len(answer.data) == size
        assert answer.data == WANTED[: len(answer.data)]
        end = START + len(answer.data) - 1
        assert answer.headers["Content-Range"] == f"bytes {START}-{end}/{len(BLOB)}"


def flipped_bits(actual: bytes, expected: bytes) -> list[int]:
    assert len(actual) == len(expected)
    return [
        8 * place + bit
        for place, (a, b) in enumerate(zip(actual, expected, strict=True))
        for bit in range(8)
        if (a ^ b) >> bit & 1
    ]


@pytest.mark.parametrize("bit", [0, 77, 8 * len(WANTED) - 1, None])
def test_one_bit_of_an_answer(proxy: FaultProxy, bit: int | None) -> None:
    proxy.add(faults.FlipBit(bit=bit))
    flipped = flipped_bits(ask(proxy).data, WANTED)
    assert flipped == [proxy.log.entries()[0].flipped]
    assert bit is None or flipped == [bit]


@pytest.mark.parametrize("bit", [0, 8 * 300_000 - 1, None])
def test_one_bit_of_a_request(server: Origin, proxy: FaultProxy, bit: int | None) -> None:
    body = bytes(300_000)
    proxy.add(faults.FlipBit("request", bit))
    ask(proxy, "PUT", body=body)
    flipped = flipped_bits(server.got[0][3], body)
    assert flipped == [proxy.log.entries()[0].flipped]
    assert bit is None or flipped == [bit]
    assert proxy.log.mutations()[0].body == server.got[0][3]


def test_the_seed_chooses_the_same_places(server: Origin) -> None:
    def places(seed: int) -> list[int | None]:
        with FaultProxy(server.endpoint_url, seed=seed) as proxy:
            proxy.add(faults.FlipBit(), probability=0.5)
            for _ in range(12):
                ask(proxy)
            return [entry.flipped for entry in proxy.log]

    assert places(1) == places(1)
    assert places(1) != places(2)


@pytest.mark.parametrize("shift", [70_000, -500, 10**9])
@pytest.mark.parametrize("lie", [False, True])
def test_other_bytes(proxy: FaultProxy, shift: int, lie: bool) -> None:
    proxy.add(faults.WrongRange(shift, lie))
    answer = ask(proxy)
    start = min(max(0, START + shift), len(BLOB) - len(WANTED))
    assert answer.status == 206
    assert answer.data == BLOB[start : start + len(WANTED)]
    said = START if lie else start
    assert answer.headers["Content-Range"] == f"bytes {said}-{said + len(WANTED) - 1}/{len(BLOB)}"


def test_a_range_that_is_ignored(proxy: FaultProxy) -> None:
    proxy.add(faults.IgnoreRange())
    answer = ask(proxy)
    assert (answer.status, answer.data) == (200, BLOB)


def test_other_bytes_need_keys(server: Origin) -> None:
    with FaultProxy(server.endpoint_url) as proxy, pytest.raises(ConfigurationError):
        proxy.add(faults.IgnoreRange())


def test_a_stall_and_a_trickle(proxy: FaultProxy) -> None:
    for fault, least in ((faults.Stall(0.3, after=5), 0.3), (faults.Trickle(100_000), 0.4)):
        rule = proxy.add(fault)
        begin = time.monotonic()
        assert ask(proxy).data == WANTED
        assert time.monotonic() - begin >= least
        proxy.remove(rule)


# --- the end ----------------------------------------------------------------------------


def test_it_ends_with_requests_under_way(server: Origin) -> None:
    before = threading.active_count()
    with FaultProxy(server) as proxy:
        proxy.add(faults.BlackHole())
        client = connect(proxy)
        client.request("GET", "/b/k")
        while not len(proxy.log):
            time.sleep(0.01)
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        client.getresponse()
    with pytest.raises(ConnectionError):
        connect(proxy).connect()
    assert threading.active_count() <= before + 1  # the server's thread for its last client
    proxy.stop()


def test_https_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="plain HTTP"):
        FaultProxy("https://s3.example")


def test_it_needs_no_pytest() -> None:
    code = "import sys; from torch_s3dcp.testing import FaultProxy, faults; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"pytest", "hypothesis"} & set(done.stdout.split())
