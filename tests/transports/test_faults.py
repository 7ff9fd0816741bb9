"""What a server or the network does once or for ever, and what is asked how often after that."""

from __future__ import annotations

import contextlib
import pickle
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from support.scripted import (
    BLOB,
    Scripted,
    Step,
    at_work,
    black_hole,
    broken,
    deaf,
    hang_up,
    lost,
    other_range,
    refuse,
    stall,
    trickle,
)
from support.tls import settings_of, trust

from torch_s3dcp import S3Client, S3ClientConfig, S3Credentials
from torch_s3dcp.exceptions import (
    AccessDeniedError,
    CredentialsError,
    DeadlineError,
    EndpointError,
    PreconditionFailedError,
    StorageError,
    ThrottledError,
)
from torch_s3dcp.segments import SegmentStream
from torch_s3dcp.transports import BotoTransport

MIB = 2**20


@pytest.fixture
def server(context: ssl.SSLContext | None) -> Iterator[Scripted]:
    with Scripted(context) as running:
        yield running


@pytest.fixture
def plain() -> Iterator[Scripted]:
    with Scripted() as running:
        yield running


def transport_to(server: Any, **settings: Any) -> BotoTransport:
    usual: dict[str, Any] = {
        "endpoint_url": getattr(server, "url", server),
        "credentials": S3Credentials("key", "secret"),
        "force_path_style": True,
        "max_attempts": 5,
        "pause_factor": 0.01,
    }
    config = S3ClientConfig(**{**usual, **settings})
    return BotoTransport("us-east-1", config)


def read(server: Any, start: int = 0, end: int = len(BLOB), **settings: Any) -> bytes:
    """A range, as readers get it."""
    transport = transport_to(server, **settings)
    with (
        S3Client(transport=transport, s3client_config=transport.config)
        .pin("bucket", "key")
        .stream(start, end) as stream
    ):
        return stream.readall()


SLOW = refuse(503, "SlowDown")
ONCE: dict[str, tuple[list[Step | None], int]] = {
    "slow down": ([SLOW] * 4, 5),
    "429": ([refuse(429, "TooManyRequests")], 2),
    "500": ([refuse(500, "InternalError")] * 2, 3),
    "502 without words": ([refuse(502)], 2),
    "expired token": ([refuse(400, "ExpiredToken")], 2),
    "server's timeout": ([refuse(400, "RequestTimeout")], 2),
    "hung up": ([hang_up] * 3, 4),
    "truncated": ([broken(1000, reset=False)], 2),
    "other range": ([other_range], 2),
    "black hole": ([black_hole], 2),
    "stall": ([stall(70_000)], 2),
    "trickle": ([trickle(20_000)], 2),
}


@pytest.mark.parametrize("fault", ONCE)
def test_what_passes_is_no_failure(server: Scripted, fault: str) -> None:
    server.script, requests = list(ONCE[fault][0]), ONCE[fault][1]
    assert read(server) == BLOB
    assert len(server.seen) == requests


@pytest.mark.parametrize("reset", [True, False])
def test_a_body_goes_on_at_the_next_missing_byte(plain: Scripted, reset: bool) -> None:
    plain.script = [broken(100_000, reset=reset)] * 3
    # Fewer tries than breaks: each brings new bytes.
    assert read(plain, max_attempts=2) == BLOB
    begins = [start for start, _ in plain.ranges()]
    assert begins == [0, 100_000, 200_000, 300_000]


@pytest.mark.parametrize(
    ("step", "error", "requests"),
    [
        (SLOW, ThrottledError, 5),
        (refuse(500, "InternalError"), StorageError, 5),
        (hang_up, EndpointError, 5),
        (refuse(400, "ExpiredToken"), CredentialsError, 2),
        (refuse(403, "AccessDenied"), AccessDeniedError, 1),
        (refuse(403, "SignatureDoesNotMatch"), CredentialsError, 1),
        (refuse(501, "NotImplemented"), StorageError, 1),
        (refuse(418, "Teapot"), StorageError, 1),
    ],
)
def test_what_does_not_pass_is_raised(
    plain: Scripted, step: Step, error: type[StorageError], requests: int
) -> None:
    plain.always = step
    with pytest.raises(error) as caught:
        read(plain)
    assert len(plain.seen) == requests
    assert type(caught.value) is error
    assert (caught.value.attempts or 1) == requests
    assert type(pickle.loads(pickle.dumps(caught.value))) is error


USES: dict[str, Callable[[BotoTransport], object]] = {
    "head": lambda t: t.head("bucket", "key"),
    "get": lambda t: t.get("bucket", "key", 3, 9).readall(),
    "put": lambda t: t.put("bucket", "key", b"data"),
    "conditional put": lambda t: t.put("bucket", "key", b"data", if_none_match=True),
    "delete": lambda t: t.delete("bucket", ["key"]),
    "delete many": lambda t: t.delete("bucket", ["a", "b"]),
    "list": lambda t: list(t.list("bucket", "key")),
    "upload": lambda t: t.upload(
        "bucket", "key", SegmentStream(iter([memoryview(bytes(9))])), expected_size=9
    ),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("step", [SLOW, hang_up, refuse(500, "InternalError")])
def test_every_operation_insists(plain: Scripted, use: str, step: Step) -> None:
    USES[use](transport_to(plain))
    clean = len(plain.seen)
    plain.seen.clear()
    plain.stored.clear()
    plain.script = [step, step]
    USES[use](transport_to(plain))
    assert len(plain.seen) == clean + 2


@pytest.mark.parametrize("use", USES)
def test_every_operation_ends(plain: Scripted, use: str) -> None:
    plain.always = black_hole
    with pytest.raises(DeadlineError, match="give_up_after") as caught:
        USES[use](transport_to(plain, give_up_after=0.3, read_timeout=0.1, max_attempts=1000))
    assert caught.value.bucket == "bucket"
    assert caught.value.operation
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), str(copy)) == (DeadlineError, str(caught.value))
    assert isinstance(copy, TimeoutError)


def test_a_server_that_trickles_for_ever_runs_out_of_time(plain: Scripted) -> None:
    plain.always = trickle(200)
    with pytest.raises(DeadlineError) as caught:
        read(plain, give_up_after=3.0, max_attempts=1000)
    assert caught.value.byte_range == (0, len(BLOB))


def test_a_conflict_is_asked_again_with_its_condition(plain: Scripted) -> None:
    plain.script = [refuse(409, "ConditionalRequestConflict")]
    transport_to(plain).put("bucket", "key", b"data", if_none_match=True)
    assert len(plain.seen) == 2
    plain.script = [refuse(412, "PreconditionFailed")]
    with pytest.raises(PreconditionFailedError):
        transport_to(plain).put("bucket", "key", b"data", if_none_match=True)
    assert len(plain.seen) == 3


def test_a_damaged_body_is_sent_four_times(plain: Scripted) -> None:
    plain.always = refuse(400, "XAmzContentSHA256Mismatch")
    with pytest.raises(StorageError, match="XAmzContentSHA256Mismatch"):
        transport_to(plain).put("bucket", "key", b"data")
    assert len(plain.seen) == 4


def test_no_connection_outlasts_the_tries(plain: Scripted) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(EndpointError, match="cannot be reached") as caught:
            transport_to(url).head("bucket", "key")
    assert caught.value.attempts == 5
    with pytest.raises(EndpointError, match=r"nonexistent\.invalid") as caught:
        transport_to("http://nonexistent.invalid").head("bucket", "key")
    assert caught.value.attempts == 5


def test_a_server_that_comes_back_is_found(plain: Scripted) -> None:
    """The first connections are refused: nobody listens yet."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        found: list[Any] = []
        transport = transport_to(f"http://127.0.0.1:{port}", max_attempts=50, pause_factor=0.1)
        thread = threading.Thread(target=lambda: found.append(transport.head("bucket", "key")))
        thread.start()
        thread.join(0.3)
        held.listen()
        connection, _ = held.accept()
        with connection:
            connection.recv(10_000)
            connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 7\r\n\r\n')
            thread.join(30)
    assert [info.size for info in found] == [7]


def parts() -> Any:
    return SegmentStream(iter([memoryview(bytes(5 * MIB)) for _ in range(3)]))


def upload(server: Scripted, **settings: Any) -> Any:
    transport = transport_to(server, part_size=5 * MIB, **settings)
    return transport.upload("bucket", "key", parts(), expected_size=15 * MIB)


@pytest.mark.parametrize("step", [hang_up, SLOW, deaf, lost])
def test_a_part_is_sent_again(plain: Scripted, step: Step) -> None:
    plain.script = [None, step]
    uploaded = upload(plain, read_timeout=2)
    assert uploaded.retries == 1
    sent = [path for method, path, _ in plain.seen if method == "PUT"]
    assert len(sent) == 4
    assert len(set(sent)) == 3


def test_the_other_parts_end_when_one_is_refused(plain: Scripted) -> None:
    """One waits for its answer, one pauses: neither is waited for."""
    refused = threading.Event()

    def deny(exchange: Any) -> bool:
        refused.wait(20)
        return refuse(403, "AccessDenied")(exchange)

    def waits(exchange: Any) -> bool:
        refused.set()
        return black_hole(exchange)

    plain.script = [None, deny, SLOW, waits]
    with pytest.raises(AccessDeniedError):
        upload(plain, pause_factor=1000, give_up_after=10_000)
    assert plain.seen[-1][0] == "DELETE", "it is aborted"


def test_what_the_server_works_on_is_asked_for_once(plain: Scripted) -> None:
    """A second copy, or a second completion, would be done besides the first."""
    plain.script = [None, at_work(6)]
    transport_to(plain).copy("bucket", "key", "bucket", "other")
    assert [method for method, _, _ in plain.seen] == ["HEAD", "PUT"]
    plain.script, plain.seen = [None, None, None, None, at_work(6)], []
    assert upload(plain).retries == 0
    completed = [path for method, path, _ in plain.seen if method == "POST"]
    assert len(completed) == 2, "it was begun, and completed"


def test_a_record_that_is_never_complete_runs_out_of_time(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS gives nothing before all of a record is there, however its bytes trickle in."""
    trust(authority, tmp_path, monkeypatch)
    context = settings_of(authority)
    stopped, threads = threading.Event(), list[threading.Thread]()

    def crawl(connection: socket.socket) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        with connection, contextlib.suppress(OSError):
            while True:
                try:
                    tls.do_handshake()
                    request = tls.read(65536)
                    break
                except ssl.SSLWantReadError:
                    connection.sendall(outgoing.read())
                    incoming.write(connection.recv(65536))
            assert request.startswith(b"HEAD")
            connection.sendall(outgoing.read())
            tls.write(b"HTTP/1.1 200 OK\r\n".ljust(16_000, b"x"))
            for byte in outgoing.read():
                connection.sendall(bytes([byte]))
                if stopped.wait(0.1):
                    return

    def listen() -> None:
        with contextlib.suppress(OSError):
            while True:
                threads.append(threading.Thread(target=crawl, args=(listener.accept()[0],)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads.append(threading.Thread(target=listen))
        threads[0].start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        found: list[BaseException] = []

        def ask() -> None:
            try:
                transport_to(url, give_up_after=1, read_timeout=1).head("bucket", "key")
            except StorageError as error:
                found.append(error)

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(15)
        stopped.set()
        listener.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join(10)
    assert [type(error) for error in found] == [DeadlineError]


def test_credentials_are_looked_for_anew(
    plain: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tool renews the shared credentials file while the client lives."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    signed_by: list[str] = []

    def check(exchange: Any) -> bool:
        signed_by.append(exchange.headers["Authorization"].partition("Credential=")[2][:3])
        return refuse(400, "ExpiredToken")(exchange) if signed_by[-1] == "OLD" else False

    plain.always = check
    transport = transport_to(plain, credentials=None)
    file.write_text("[default]\naws_access_key_id = OLD\naws_secret_access_key = b\n")
    transport.prepare()
    file.write_text("[default]\naws_access_key_id = NEW\naws_secret_access_key = b\n")
    transport.put("bucket", "key", b"")
    transport.put("bucket", "key", b"")
    assert signed_by == ["OLD", "NEW", "NEW"]


def test_credentials_that_stay_expired_are_renewed_once(plain: Scripted) -> None:
    plain.always = refuse(400, "ExpiredToken")
    transport = transport_to(plain)
    first = transport.client
    for _ in range(3):
        with pytest.raises(CredentialsError):
            transport.put("bucket", "key", b"")
    assert transport.client is not first
    assert len(plain.seen) == 4, "twice, then once each"
