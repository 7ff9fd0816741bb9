"""The test servers themselves: they serve, stay on loopback, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.exceptions import ClientError

from torch_s3dcp.testing import _child
from torch_s3dcp.testing.servers import (
    Identity,
    MissingServerError,
    MotoServer,
    RcloneServer,
    S3Server,
    SeaweedServer,
    ServerStartError,
)

SERVERS = [
    pytest.param(SeaweedServer, marks=pytest.mark.server, id="seaweed"),
    pytest.param(MotoServer, id="moto"),
    pytest.param(RcloneServer, id="rclone"),
]
CHILD_SERVERS = [SERVERS[0], SERVERS[2]]
BODY = bytes(range(256)) * 40


@pytest.fixture(
    params=[pytest.param("seaweed", marks=pytest.mark.server), "moto_server", "rclone_server"]
)
def server(request: pytest.FixtureRequest) -> S3Server:
    return request.getfixturevalue(request.param)


@pytest.fixture
def bucket(server: S3Server) -> Iterator[str]:
    name = f"servers-{os.urandom(6).hex()}"
    server.create_bucket(name)
    yield name
    server.delete_bucket(name)


def port_of(server: S3Server) -> int:
    port = urlsplit(server.endpoint_url).port
    assert port is not None
    return port


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until_dead(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_alive(pid)


def listening_addresses(pid: int) -> set[str]:
    """Addresses, in the kernel's hexadecimal, on which a process listens (Linux)."""
    sockets = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(os.readlink(entry))
        except FileNotFoundError:
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found.add(fields[1].rpartition(":")[0])
    return found


def test_serves_put_get_range_and_list(server: S3Server, bucket: str) -> None:
    client = server.client()
    client.put_object(Bucket=bucket, Key="a/b", Body=BODY)
    client.put_object(Bucket=bucket, Key="a/c", Body=b"")

    assert client.get_object(Bucket=bucket, Key="a/b")["Body"].read() == BODY
    part = client.get_object(Bucket=bucket, Key="a/b", Range="bytes=100-299")
    assert part["Body"].read() == BODY[100:300]
    assert part["ContentRange"] == f"bytes 100-299/{len(BODY)}"
    listed = client.list_objects_v2(Bucket=bucket, Prefix="a/")["Contents"]
    assert [(entry["Key"], entry["Size"]) for entry in listed] == [("a/b", len(BODY)), ("a/c", 0)]
    with pytest.raises(ClientError, match="NoSuchKey"):
        client.get_object(Bucket=bucket, Key="absent")


def test_environment_is_all_that_boto3_needs(
    server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    client = boto3.session.Session().client("s3")
    assert bucket in [entry["Name"] for entry in client.list_buckets()["Buckets"]]


@pytest.mark.parametrize("kind", SERVERS)
def test_two_at_once_and_no_port_left_open(kind: type[S3Server]) -> None:
    with kind() as one, kind() as two:
        ports = [port_of(one), port_of(two)]
        assert ports[0] != ports[1]
        for number, server in enumerate((one, two)):
            server.create_bucket(f"bucket-{number}")
            server.client().put_object(Bucket=f"bucket-{number}", Key="k", Body=BODY)
            got = server.client().get_object(Bucket=f"bucket-{number}", Key="k")
            assert got["Body"].read() == BODY
    assert not any(is_open(port) for port in ports)


def test_moto_forgets_its_buckets_when_the_last_server_stops() -> None:
    # In a process of its own: the session's server here would keep them.
    script = (
        "from torch_s3dcp.testing.servers import MotoServer\n"
        "with MotoServer() as server:\n"
        "    server.create_bucket('forgotten')\n"
        "with MotoServer() as server:\n"
        "    assert server.client().list_buckets()['Buckets'] == []\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.parametrize("kind", CHILD_SERVERS)
def test_child_is_gone_with_its_folder(kind: type, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with kind() as server:
        assert is_alive(server.pid)
        assert list(tmp_path.iterdir())
    assert not is_alive(server.pid)
    assert list(tmp_path.iterdir()) == []
    server.stop()  # a second time does nothing


@pytest.mark.parametrize("kind", CHILD_SERVERS)
def test_given_folder_keeps_the_data(kind: type, tmp_path: Path) -> None:
    with kind(tmp_path / "kept") as server:
        server.create_bucket("bucket")
        server.client().put_object(Bucket="bucket", Key="k", Body=BODY)
    with kind(tmp_path / "kept") as server:
        assert server.client().get_object(Bucket="bucket", Key="k")["Body"].read() == BODY


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["seaweed", "rclone_server"])
def test_listens_on_loopback_only(name: str, request: pytest.FixtureRequest) -> None:
    assert listening_addresses(request.getfixturevalue(name).pid) == {"0100007F"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_moto_listens_on_loopback_only(moto_server: MotoServer) -> None:
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.2", port_of(moto_server))) != 0


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_server_dies_with_its_parent(how: signal.Signals, tmp_path: Path) -> None:
    script = (
        "import time\n"
        "from torch_s3dcp.testing.servers import RcloneServer\n"
        "server = RcloneServer(); server.start()\n"
        "print(server.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    # A killed parent can't remove its folder: it stays under pytest's.
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment
    ) as parent:
        assert parent.stdout is not None
        server_pid = int(parent.stdout.readline())
        assert is_alive(server_pid)
        parent.send_signal(how)
    assert wait_until_dead(server_pid)


def test_server_is_stopped_when_the_program_ends_without_stop() -> None:
    script = (
        "from torch_s3dcp.testing.servers import RcloneServer\n"
        "server = RcloneServer(); server.start()\n"
        "print(server.pid, server.folder, flush=True)\n"
    )
    output = subprocess.check_output([sys.executable, "-c", script], text=True, timeout=120)
    pid, folder = output.split()
    assert wait_until_dead(int(pid))
    assert not Path(folder).exists()


def test_server_outlives_the_thread_that_started_it() -> None:
    server = RcloneServer()
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    try:
        time.sleep(0.3)
        assert is_alive(server.pid)
        server.client().list_buckets()
    finally:
        server.stop()


def test_a_forked_copy_does_not_stop_the_server(rclone_server: RcloneServer) -> None:
    child = os.fork()
    if child == 0:
        rclone_server.stop()
        os._exit(0)
    os.waitpid(child, 0)
    assert is_alive(rclone_server.pid)


@pytest.mark.server
def test_another_identity_may_do_only_what_it_is_allowed() -> None:
    reader = Identity("reader", "readerkey0", "readersecret", ("Read", "List"))
    with SeaweedServer(identities=[reader]) as server:
        server.create_bucket("bucket")
        server.client().put_object(Bucket="bucket", Key="k", Body=BODY)
        client = server.client(reader)
        assert client.get_object(Bucket="bucket", Key="k")["Body"].read() == BODY
        with pytest.raises(ClientError, match="AccessDenied"):
            client.put_object(Bucket="bucket", Key="k", Body=b"")
        stranger = Identity("stranger", "strangerkey", "strangersecret")
        with pytest.raises(ClientError, match="InvalidAccessKeyId"):
            server.client(stranger).list_objects_v2(Bucket="bucket")


def test_a_server_that_ends_is_reported_with_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(self: RcloneServer, folder: Path) -> list[str]:
        self.endpoint_url = "http://127.0.0.1:1"
        return ["/bin/sh", "-c", "echo something broke; exit 3"]

    monkeypatch.setattr(RcloneServer, "_command", command)
    with pytest.raises(ServerStartError, match=r"status 3[\s\S]*something broke"):
        RcloneServer().start()


def test_a_server_that_hangs_is_reported_and_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(self: RcloneServer, folder: Path) -> list[str]:
        (port,) = _child.free_ports(1)
        self.endpoint_url = f"http://127.0.0.1:{port}"
        return ["/bin/sh", "-c", "echo waiting; exec sleep 600"]

    monkeypatch.setattr(RcloneServer, "_command", command)
    server = RcloneServer(start_seconds=0.5)
    with pytest.raises(ServerStartError, match=r"within 0.5 s[\s\S]*waiting"):
        server.start()
    assert not is_alive(server.pid)


@pytest.mark.parametrize("kind", CHILD_SERVERS)
def test_tries_again_when_a_port_was_taken(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = _child.free_ports, []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        def ports(count: int, *, grpc: bool = False) -> list[int]:
            calls.append(count)
            found = real(count, grpc=grpc)
            return [*found[:-1], taken.getsockname()[1]] if len(calls) == 1 else found

        monkeypatch.setattr("torch_s3dcp.testing.servers.free_ports", ports)
        with kind() as server:
            server.client().list_buckets()
    assert len(calls) == 2


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingServerError, match="pip install no-such-package"):
        _child.find_program("no-such-program", "no-such-package")
    monkeypatch.setitem(sys.modules, "moto.server", None)
    with pytest.raises(MissingServerError, match="pip install 'moto"):
        MotoServer().start()


def test_free_ports_leave_room_for_grpc() -> None:
    ports = _child.free_ports(8, grpc=True)
    assert len({*ports, *(port + 10_000 for port in ports)}) == 16
    assert max(ports) < 55_535
