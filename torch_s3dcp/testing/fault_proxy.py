"""A proxy on loopback between a client and an S3 server: notes requests, lets chosen ones fail."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
import threading
import urllib.parse
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from ..exceptions import ConfigurationError
from . import faults
from ._exchange import Exchange
from ._link import Link, Origin
from ._signing import Keys
from ._wire import Head, Wire, WireError
from .fault_rules import FaultRule, RuleBook, S3Request, request_of
from .faults import WireFault
from .request_log import RequestLog, hide_signature

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["FaultProxy", "FaultRule", "RequestLog", "S3Request", "WireFault", "faults"]

_LOOPBACK = "127.0.0.1"
_STOP_SECONDS = 10.0


class FaultProxy:
    """Stands between clients and an S3 server on plain HTTP; a context manager.

    Requests are passed on as they came, signatures and ``Host`` too: give the client
    ``endpoint_url`` of the proxy instead of the server's, and path-style addressing. Bodies are
    streamed. It runs in a thread of its own; rules may be added and removed at any time. What it
    answers, and all it notes, is for tests: it checks no signature.

    Args:
        server: URL of the server, or something with an ``endpoint_url``, such as the servers of
            this package. Of those it takes the keys too, with which it asks for other bytes than
            the client did (``WrongRange``, ``IgnoreRange``).
        seed: With it a run can be repeated.
        keep_bodies: Keep the bodies of mutations in the log.
        access_key, secret_key, region: The keys for ``server``, if it is a URL.
    """

    def __init__(
        self,
        server: Any,
        *,
        seed: int = 0,
        keep_bodies: bool = False,
        access_key: str | None = None,
        secret_key: str | None = None,
        region: str = "us-east-1",
    ) -> None:
        address = server if isinstance(server, str) else server.endpoint_url
        place = urllib.parse.urlsplit(address)
        if place.scheme != "http" or not place.hostname:
            raise ConfigurationError(f"not the URL of a server on plain HTTP: {address!r}")
        access_key = access_key or getattr(server, "access_key", None)
        secret_key = secret_key or getattr(server, "secret_key", None)
        region = getattr(server, "region", region)
        keys = Keys(access_key, secret_key, region) if access_key and secret_key else None
        self.log = RequestLog(keep_bodies)
        self.rules = RuleBook(seed)
        self._origin = Origin((place.hostname, place.port or 80), keys, self.log)
        self._failures: list[BaseException] = []
        self._owner = os.getpid()
        self._listen(0)
        self._port: int = self._listener.getsockname()[1]
        self.endpoint_url = f"http://{_LOOPBACK}:{self._port}"
        self._loop = asyncio.new_event_loop()
        self._outages: asyncio.Queue[float] = asyncio.Queue()
        self._serving: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.stop()
        if kind is None and self._failures:
            raise RuntimeError("the proxy itself failed") from self._failures[0]

    def start(self) -> None:
        """Begin to listen."""
        self._main = self._loop.create_task(self._live())
        self._thread.start()

    def stop(self) -> None:
        """End all connections and the thread; nothing on a second call, or in a forked copy."""
        if self._thread.is_alive() and os.getpid() == self._owner:
            self._loop.call_soon_threadsafe(self._main.cancel)
            self._thread.join(_STOP_SECONDS)

    def add(
        self, fault: WireFault | Callable[[S3Request], WireFault | None], **conditions: Any
    ) -> FaultRule:
        """Add a rule behind the others; returns it.

        Args:
            fault: What happens, from ``torch_s3dcp.testing.faults``.
            conditions: Those of :class:`FaultRule`.

        Raises:
            ConfigurationError: The proxy lacks the server's keys, which this fault needs.
        """
        needs_keys = isinstance(fault, (faults.WrongRange, faults.IgnoreRange))
        if needs_keys and self._origin.keys is None:
            raise ConfigurationError(f"{fault} needs access_key and secret_key of the server")
        return self.rules.add(FaultRule(fault, **conditions))

    def remove(self, rule: FaultRule) -> None:
        """Drop a rule."""
        self.rules.remove(rule)

    def go_down(self, seconds: float) -> None:
        """End all connections and refuse new ones for so long, as a server that restarts does.

        Returns at once. May be called by a rule, in the middle of an exchange.
        """
        self._loop.call_soon_threadsafe(self._outages.put_nowait, seconds)

    def release(self) -> None:
        """Let the server see the requests that were late, in their order, and wait for it."""
        self._in_loop(self._release())

    def _in_loop(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _release(self) -> None:
        held, self._origin.held[:] = list(self._origin.held), []
        for send in held:
            await send()

    # --- in the thread ------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main)
        except asyncio.CancelledError:
            pass  # asked to stop
        except Exception as error:  # noqa: BLE001 - raised where the proxy is left
            self._failures.append(error)
        finally:
            self._listener.close()
            left = asyncio.all_tasks(self._loop)
            for task in left:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def _listen(self, port: int) -> None:
        self._listener = socket.create_server((_LOOPBACK, port), backlog=1024)
        self._listener.setblocking(False)

    async def _live(self) -> None:
        """Listen, but for outages."""
        while True:
            accepting = self._loop.create_task(self._accept())
            outage = self._loop.create_task(self._outages.get())
            await asyncio.wait({accepting, outage}, return_when=asyncio.FIRST_COMPLETED)
            if accepting.done():
                accepting.result()  # it only ends with an error
            accepting.cancel()
            await asyncio.gather(accepting, return_exceptions=True)
            # First: whoever sees a connection end finds nobody listening.
            self._listener.close()
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)
            await asyncio.sleep(await outage)
            self._listen(self._port)

    async def _accept(self) -> None:
        while True:
            sock, _ = await self._loop.sock_accept(self._listener)
            task = self._loop.create_task(self._serve(sock))
            # The loop itself keeps weak references only.
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

    async def _serve(self, sock: socket.socket) -> None:
        client, link = Wire(sock), Link(self._origin)
        try:
            while (head := await client.head()) is not None:
                if not await self._exchange(client, link, head):
                    break
        except OSError:
            pass  # the client left: it knows why
        except Exception as error:  # noqa: BLE001 - raised where the proxy is left
            self._failures.append(error)
            client.reset()
        finally:
            client.close()
            link.drop()

    async def _exchange(self, client: Wire, link: Link, head: Head) -> bool:
        method, target, *_ = head.line.split(" ")
        headers = head.lower()
        request = request_of(method, target, headers)
        shown = dataclasses.replace(request, target=hide_signature(target))
        entry = self.log.begin(shown, headers)
        try:
            strike = self.rules.decide(request)
            entry.fault = strike.fault if strike else None
            return await Exchange(client, link, head, request, strike, entry).run() and not (
                head.closes
            )
        except WireError as error:
            entry.problem = f"client: {error}"
            raise
        except OSError as error:
            entry.problem = f"the client's connection broke: {error}"
            raise
        finally:
            self.log.finish(entry)
