"""TLS for servers of tests, and in front of one that speaks plain HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme

_BLOCK = 256 * 1024


def settings_of(authority: trustme.CA, name: str = "127.0.0.1") -> ssl.SSLContext:
    """What a server needs that claims to be ``name``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def trust(authority: trustme.CA, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let clients believe what the authority says; its certificate is written to the folder."""
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(folder / "authority.pem"))


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while block := await reader.read(_BLOCK):
            writer.write(block)
            await writer.drain()
    writer.close()


@contextlib.contextmanager
def over_tls(endpoint: str, authority: trustme.CA) -> Iterator[str]:
    """An https address on loopback that leads to ``endpoint``."""
    context = settings_of(authority)
    to = urlsplit(endpoint)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(to.hostname, to.port)
        with contextlib.suppress(asyncio.CancelledError):  # at the end
            await asyncio.gather(_pass_on(reader, inner_writer), _pass_on(inner_reader, writer))

    async def stop() -> None:
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(
        asyncio.start_server(connected, "127.0.0.1", 0, ssl=context), loop
    ).result(10)
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
