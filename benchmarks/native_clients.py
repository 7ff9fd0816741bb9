"""Clients written in C and Rust, as `transport_candidates` measures them.

Neither receives into memory of the caller: both hand out buffers of their own, which are
copied from here.
"""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

#: Receives as many bytes of the object as the memory has, from a first one on.
Fetch = Callable[[int, memoryview], None]


def byte_range(start: int, memory: memoryview) -> str:
    """The HTTP header for the bytes that fill the memory."""
    return f"bytes={start}-{start + len(memory) - 1}"


def awscrt_fetch(bucket: str, key: str, part_size: int, connections: int) -> Fetch:
    """awscrt's S3 client; it cuts what is asked for into parts, and hands out whole parts."""
    from awscrt.auth import AwsCredentialsProvider
    from awscrt.http import HttpHeaders, HttpRequest
    from awscrt.io import ClientTlsContext, TlsContextOptions
    from awscrt.s3 import (
        S3Client,
        S3RequestTlsMode,
        S3RequestType,
        create_default_s3_signing_config,
    )

    server = urllib.parse.urlsplit(os.environ["AWS_ENDPOINT_URL"])
    region = os.environ["AWS_DEFAULT_REGION"]
    options: dict[str, Any] = {"tls_mode": S3RequestTlsMode.DISABLED}
    if server.scheme == "https":
        trusted = TlsContextOptions()
        trusted.override_default_trust_store_from_path(None, os.environ["AWS_CA_BUNDLE"])
        context = ClientTlsContext(trusted)
        options = {"tls_connection_options": context.new_connection_options()}
    credentials = AwsCredentialsProvider.new_default_chain()
    signing = create_default_s3_signing_config(region=region, credential_provider=credentials)
    client = S3Client(
        region=region,
        signing_config=signing,
        part_size=part_size,
        max_active_connections_override=connections,
        **options,
    )

    def fetch(start: int, memory: memoryview) -> None:
        def on_body(chunk: bytes, offset: int, **_: Any) -> None:
            memory[offset - start : offset - start + len(chunk)] = chunk

        fields = [("Host", server.netloc), ("Range", byte_range(start, memory))]
        request = HttpRequest("GET", f"/{bucket}/{key}", HttpHeaders(fields))
        sent = client.make_request(type=S3RequestType.GET_OBJECT, request=request, on_body=on_body)
        finished: Future[None] = sent.finished_future
        finished.result()

    return fetch


def obstore_fetch(bucket: str, key: str) -> Fetch:
    """obstore's ``get_range``: one buffer for the whole range."""
    import obstore  # type: ignore[import-not-found, unused-ignore]

    store = _obstore(bucket)

    def fetch(start: int, memory: memoryview) -> None:
        memory[:] = memoryview(obstore.get_range(store, key, start=start, length=len(memory)))

    return fetch


def obstore_blocks(bucket: str, key: str, block_size: int) -> Fetch:
    """obstore's ``get(...).stream()``: buffers of at least ``block_size`` bytes, as they come."""
    import obstore

    store = _obstore(bucket)

    def fetch(start: int, memory: memoryview) -> None:
        options = {"range": (start, start + len(memory))}
        blocks = obstore.get(store, key, options=options).stream(min_chunk_size=block_size)
        filled = 0
        for block in blocks:
            memory[filled : filled + len(block)] = block
            filled += len(block)

    return fetch


def _obstore(bucket: str) -> Any:
    from obstore.store import S3Store  # type: ignore[import-not-found, unused-ignore]

    # Its TLS refuses the certificate of the benchmark's server, which is its own authority.
    options = {"allow_http": True, "allow_invalid_certificates": True}
    return S3Store(bucket, client_options=options)
