"""Secrets stay inside: of what holds settings, and of errors, whatever a server says."""

from __future__ import annotations

import base64
import io
import logging
import pickle
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from support.canary import CUSTOMER_KEY
from support.dcp import failures, quiet

from torch_s3dcp import (
    S3ClientConfig,
    S3Credentials,
    S3FileSystem,
    S3StorageReader,
    S3StorageWriter,
)
from torch_s3dcp.client import S3Client
from torch_s3dcp.exceptions import ConfigurationError, CredentialsError, S3DCPError
from torch_s3dcp.testing import SECRET_MARK, TOKEN_MARK, MotoServer
from torch_s3dcp.transports import BotoTransport

KEY_ID = "AKIAMADEUPKEYID00000"
KEYS = S3Credentials(KEY_ID, SECRET_MARK + "OfReprs", TOKEN_MARK + "OfReprs")
WITH_KEYS = S3ClientConfig(credentials=KEYS, endpoint_url="http://127.0.0.1:1", max_attempts=1)
WITH_CUSTOMER_KEY = S3ClientConfig(sse_customer_key=CUSTOMER_KEY)
FORMS = (
    KEY_ID,
    SECRET_MARK,
    TOKEN_MARK,
    CUSTOMER_KEY.decode(),
    base64.b64encode(CUSTOMER_KEY).decode(),
    "X-Amz-Signature",
)
HOLDERS: dict[str, Callable[[S3ClientConfig], Any]] = {
    "config": lambda config: config,
    "credentials": lambda config: config.credentials or KEYS,
    "transport": lambda config: BotoTransport("us-east-1", config),
    "client": lambda config: S3Client("us-east-1", s3client_config=config),
    "file system": lambda config: S3FileSystem("us-east-1", s3client_config=config),
    "reader": lambda config: S3StorageReader("s3://bucket/key", "us-east-1", config),
    "writer": lambda config: S3StorageWriter("s3://bucket/key", "us-east-1", config),
}

every_holder = pytest.mark.parametrize("make", HOLDERS.values(), ids=HOLDERS)
every_config = pytest.mark.parametrize(
    "config", [WITH_KEYS, WITH_CUSTOMER_KEY], ids=["credentials", "customer key"]
)


def shown(*texts: str) -> list[str]:
    """Which secrets can be read in a text."""
    return [form for text in texts for form in FORMS if form in text]


@every_holder
@every_config
def test_no_text_shows_a_secret(make: Callable[..., Any], config: S3ClientConfig) -> None:
    holder = make(config)
    attributes = "" if make in (HOLDERS["config"], HOLDERS["credentials"]) else f"{vars(holder)!r}"
    texts = [str(holder), repr(holder), f"{holder}", "%r %s" % (holder, [holder]), attributes]  # noqa: UP031
    assert shown(*texts) == []


@every_holder
@every_config
def test_a_pickle_holds_no_secret(make: Callable[..., Any], config: S3ClientConfig) -> None:
    """It is refused, and the refusal says what to do."""
    with pytest.raises(ConfigurationError, match="not sent to another process") as caught:
        pickle.dumps(make(config))
    assert shown(str(caught.value), repr(pickle.dumps(caught.value))) == []


def test_readers_and_writers_of_objects_show_nothing(moto_server: MotoServer) -> None:
    config = WITH_KEYS.replace(endpoint_url=moto_server.endpoint_url, force_path_style=True)
    moto_server.create_bucket("shown")
    client = S3Client("us-east-1", s3client_config=config)
    writer = client.put_object("shown", "key")
    writer.write(b"data")
    writer.close()
    reader = client.get_object("shown", "key")
    assert reader.read() == b"data"
    # A range by signed URL, whose address the client keeps.
    pinned = client.pin("shown", "key")
    for start in (0, 1):
        with pinned.stream(start, 3) as stream:
            assert stream.readall() == b"data"[start:3]
    texts = [repr(vars(one)) for one in (reader, writer, pinned)]
    assert shown(*texts, repr(reader), repr(writer), repr(pinned), str(client)) == []
    moto_server.delete_bucket("shown")


# ---- errors


class Echo(BaseHTTPRequestHandler):
    """Refuses every request and repeats all of it, as S3 does of a wrong signature, and more."""

    protocol_version = "HTTP/1.1"
    code = "SignatureDoesNotMatch"

    def refuse(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        said = f"{self.command} {self.path.replace('&', '&amp;')}\n{self.headers}"
        authorization = self.headers.get("Authorization", "")
        body = (
            f"<Error><Code>{self.code}</Code><Message>does not match: {said}</Message>"
            f"<AWSAccessKeyId>{KEY_ID}</AWSAccessKeyId><StringToSign>{said}</StringToSign>"
            f"<SignatureProvided>{authorization}</SignatureProvided>"
            f"<CanonicalRequest>{said}</CanonicalRequest></Error>"
        ).encode()
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = refuse

    def log_message(self, *args: object) -> None:
        pass


class Nonsense(Echo):
    """Answers with what is no HTTP, and repeats the request in it."""

    def refuse(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.wfile.write(f"{self.path} {self.headers.get('Authorization')}\r\n\r\n".encode())
        self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = refuse


@pytest.fixture(params=[Echo, Nonsense])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), request.param)
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


USES: dict[str, Callable[[BotoTransport], object]] = {
    "head": lambda t: t.head("bucket", "key"),
    "get": lambda t: t.get("bucket", "key"),
    "signed": lambda t: t.get("bucket", "key", 3, 9, if_match='"one"'),
    "put": lambda t: t.put("bucket", "key", b"data"),
    "upload": lambda t: t.upload("bucket", "key", io.BytesIO(bytes(6_000_000)), expected_size=1),
    "delete": lambda t: t.delete("bucket", ["a", "b"]),
    "list": lambda t: list(t.list("bucket", "key")),
}


@pytest.mark.parametrize("use", USES)
def test_a_server_that_repeats_the_request_gives_nothing_away(
    use: str, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "torch_s3dcp")
    config = WITH_KEYS.replace(
        endpoint_url=url, force_path_style=True, max_attempts=2, part_size=5 * 2**20
    )
    with pytest.raises(S3DCPError) as caught:
        USES[use](BotoTransport("us-east-1", config))
    error = caught.value
    ours = [record for record in caplog.records if record.name.startswith("torch_s3dcp")]
    logged = [logging.Formatter().format(record) for record in ours]
    texts = [str(error), repr(error), repr(error.context), repr(pickle.dumps(error)), *logged]
    assert shown(*texts) == []


@pytest.mark.parametrize("use", USES)
def test_a_traceback_of_a_broken_connection_shows_nothing(use: str) -> None:
    """Its causes are of botocore and the standard library, and name the server."""
    config = WITH_KEYS.replace(endpoint_url="http://127.0.0.1:1", force_path_style=True)
    with pytest.raises(S3DCPError) as caught:
        USES[use](BotoTransport("us-east-1", config))
    lines = traceback.format_exception(caught.value)
    assert "direct cause" in "".join(lines)
    assert shown(*lines) == []


def test_a_refused_load_and_save_give_nothing_away(url: str) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    config = WITH_KEYS.replace(endpoint_url=url, force_path_style=True, max_attempts=1)
    for act in (
        lambda: dcp.save({"a": 1}, storage_writer=S3StorageWriter("s3://bucket/key", None, config)),
        lambda: dcp.load({"a": 1}, storage_reader=S3StorageReader("s3://bucket/key", None, config)),
    ):
        with quiet(), pytest.raises(CheckpointException) as caught:
            act()
        error = failures(caught.value)[0]
        assert isinstance(error, S3DCPError)
        assert shown(str(caught.value), repr(pickle.dumps(error)), str(error)) == []


def test_a_login_in_the_address_of_the_environment_is_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    login = f"http://{KEY_ID}:pass-word@127.0.0.1:1"
    with pytest.raises(ConfigurationError) as refused:
        S3ClientConfig(endpoint_url=login)
    monkeypatch.setenv("AWS_ENDPOINT_URL", login)
    config = S3ClientConfig(credentials=KEYS, max_attempts=1, force_path_style=True)
    for act in list(USES.values())[:4]:
        with pytest.raises(S3DCPError) as caught:
            act(BotoTransport("us-east-1", config))
        text = f"{caught.value} {refused.value}"
        assert shown(text) == []
        assert "pass-word" not in text


def test_wrong_keys_are_told_apart_without_being_named(url: str) -> None:
    config = WITH_KEYS.replace(endpoint_url=url, force_path_style=True)
    with pytest.raises(S3DCPError) as caught:
        BotoTransport("us-east-1", config).get("bucket", "key")
    if isinstance(caught.value, CredentialsError):
        assert "SignatureDoesNotMatch" in str(caught.value)
        assert "***" in str(caught.value)
