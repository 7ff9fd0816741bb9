"""A server that takes what S3 clients store as fast as the kernel can, and throws it away: the
server is not the limit when a client is measured against it.

    python -m benchmarks.sink_server [--tls CERTIFICATE KEY]

It prints its address, and ends when its standard input does. It understands PUT of objects and
parts, copies, multipart uploads, HEAD, GET and DELETE, remembers how large objects are and keeps
those whose names begin with ``.metadata``. It checks nothing. ``GET /-/bytes`` tells how many
bytes have come in the bodies of PUTs, without what wraps them.
"""

from __future__ import annotations

import argparse
import email.utils
import html
import itertools
import re
import socket
import threading
import time
import urllib.parse
from dataclasses import dataclass, field

from .bodies import Body, body_of
from .listening import Incoming, add_tls, listen, tls_context

COUNT = "/-/bytes"
_KEPT = "/.metadata"
_BUFFER = 2**20
_ETAG = '"sink"'
_KEY = re.compile(rb"<Key>([^<]*)</Key>")


@dataclass(frozen=True)
class Request:
    """The head of a request; names of headers are in lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]


@dataclass(frozen=True)
class Answer:
    """What is sent back; ``size``: of an object that a HEAD asks about."""

    status: str = "200 OK"
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    size: int | None = None


@dataclass(frozen=True)
class Stored:
    """What is left of an object or a part; ``body``: None where it was thrown away."""

    size: int
    body: bytes | None


class Sink:
    """All that has been stored, for all connections."""

    def __init__(self) -> None:
        self._objects: dict[str, Stored] = {}
        self._uploads: dict[str, dict[int, Stored]] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._bytes = 0

    def serve(self, connection: socket.socket, incoming: Incoming) -> None:
        """Answer requests until the client goes."""
        buffer = memoryview(bytearray(_BUFFER))
        while True:
            request = parse(incoming.head())
            if request.headers.get("expect", "").lower() == "100-continue":
                connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            stored = _take(request, body_of(request.headers, incoming), buffer)
            connection.sendall(_encode(request, self.answer(request, stored)))

    def answer(self, request: Request, stored: Stored) -> Answer:
        """Do what is asked for; ``stored`` is the request's body."""
        try:
            if request.method == "PUT":
                return self._put(request, stored)
            if request.method == "POST":
                return self._post(request, stored)
            if request.method == "DELETE":
                return self._delete(request)
            return self._get(request)
        except KeyError:
            return Answer("404 Not Found", body=_xml("Error", Code="NoSuchKey"))

    def _put(self, request: Request, stored: Stored) -> Answer:
        source = request.headers.get("x-amz-copy-source")
        if source is not None:
            path = "/" + urllib.parse.unquote(source).lstrip("/")
            self._objects[request.path] = self._objects[path]
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            return Answer(body=_xml("CopyObjectResult", ETag=_ETAG, LastModified=now))
        with self._lock:
            self._bytes += stored.size
        if "uploadId" in request.query:
            parts = self._uploads[request.query["uploadId"]]
            parts[int(request.query["partNumber"])] = stored
        else:
            self._objects[request.path] = stored
        return Answer(headers={"ETag": _ETAG})

    def _post(self, request: Request, stored: Stored) -> Answer:
        _, bucket, key = (request.path + "/").split("/", 2)
        about = {"Bucket": bucket, "Key": key.rstrip("/")}
        if "uploads" in request.query:
            number = str(next(self._numbers))
            self._uploads[number] = {}
            body = _xml("InitiateMultipartUploadResult", **about, UploadId=number)
            return Answer(body=body)
        if "uploadId" in request.query:
            self._objects[request.path] = _joined(self._uploads.pop(request.query["uploadId"]))
            return Answer(body=_xml("CompleteMultipartUploadResult", **about, ETag=_ETAG))
        for key in _KEY.findall(stored.body or b""):
            self._objects.pop(f"/{bucket}/{html.unescape(key.decode())}", None)
        return Answer(body=_xml("DeleteResult"))

    def _delete(self, request: Request) -> Answer:
        if "uploadId" in request.query:
            del self._uploads[request.query["uploadId"]]
        else:
            self._objects.pop(request.path, None)
        return Answer("204 No Content")

    def _get(self, request: Request) -> Answer:
        if request.path == COUNT:
            return Answer(body=str(self._bytes).encode())
        found = self._objects[request.path]
        headers = {"ETag": _ETAG, "Last-Modified": email.utils.formatdate(usegmt=True)}
        if request.method == "HEAD":
            return Answer(headers=headers, size=found.size)
        if found.body is None:
            return Answer("501 Not Implemented", body=_xml("Error", Code="NotKept"))
        return Answer(headers=headers, body=found.body)


def parse(head: bytes) -> Request:
    """The request of a head."""
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    path, _, query = target.partition("?")
    fields = (line.partition(":") for line in lines)
    return Request(
        method,
        urllib.parse.unquote(path),
        dict(urllib.parse.parse_qsl(query, keep_blank_values=True)),
        {name.lower(): value.strip() for name, _, value in fields},
    )


def _take(request: Request, body: Body, buffer: memoryview) -> Stored:
    """Receive a body into the buffer, over and over; only what will be needed is kept."""
    kept = bytearray()
    keep = request.method == "POST" or _KEPT in request.path
    size = 0
    while count := body.receive(buffer):
        size += count
        if keep:
            kept += buffer[:count]
    return Stored(size, bytes(kept) if keep else None)


def _joined(parts: dict[int, Stored]) -> Stored:
    """The object that the parts make."""
    size = sum(part.size for part in parts.values())
    bodies = [parts[number].body for number in sorted(parts)]
    kept = [body for body in bodies if body is not None]
    return Stored(size, b"".join(kept) if len(kept) == len(bodies) else None)


def _encode(request: Request, answer: Answer) -> bytes:
    """The bytes of an answer. Checksums in the head of the request come back as they are."""
    size = len(answer.body) if answer.size is None else answer.size
    checksums = {n: v for n, v in request.headers.items() if n.startswith("x-amz-checksum-")}
    headers = {"Server": "sink", **answer.headers, **checksums}
    if not answer.status.startswith("204"):
        headers["Content-Length"] = str(size)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    body = b"" if request.method == "HEAD" else answer.body
    return f"HTTP/1.1 {answer.status}\r\n{lines}\r\n".encode("latin-1") + body


def _xml(kind: str, **values: str) -> bytes:
    inner = "".join(f"<{name}>{html.escape(value)}</{name}>" for name, value in values.items())
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{kind}>{inner}</{kind}>'.encode()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description="A sink for S3 clients on loopback.")
    add_tls(parser)
    options = parser.parse_args()
    listen(Sink().serve, tls_context(options.tls))


if __name__ == "__main__":
    main()
