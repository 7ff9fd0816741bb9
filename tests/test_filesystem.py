"""S3FileSystem on real servers: torch's view of files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from torch_s3dcp import S3Client, S3ClientConfig, S3Credentials, S3FileSystem
from torch_s3dcp.exceptions import (
    AccessDeniedError,
    EndpointError,
    InvalidURIError,
    ObjectNotFoundError,
)
from torch_s3dcp.testing.servers import S3Server
from torch_s3dcp.testing.wrappers import Fault, FaultTransport, RecordingTransport
from torch_s3dcp.transports import MemoryTransport

BLOB = bytes(range(256)) * 10


def on(server: S3Server) -> S3ClientConfig:
    return S3ClientConfig(
        endpoint_url=server.endpoint_url,
        force_path_style=True,
        credentials=S3Credentials(server.access_key, server.secret_key, server.session_token),
        max_attempts=2,
    )


@pytest.fixture(params=["moto", pytest.param("seaweed", marks=pytest.mark.server)])
def place(request: pytest.FixtureRequest) -> tuple[S3FileSystem, str]:
    """A file system and the address of an empty bucket."""
    name = {"moto": "moto_server", "seaweed": "seaweed"}[request.param]
    bucket = request.getfixturevalue(f"{request.param}_bucket")
    config = on(request.getfixturevalue(name))
    return S3FileSystem("us-east-1", s3client_config=config), f"s3://{bucket}"


def write(fs: S3FileSystem, path: str, data: bytes = BLOB) -> str:
    with fs.create_stream(path, "wb") as stream:
        stream.write(data)
    return path


def read(fs: S3FileSystem, path: str) -> bytes:
    with fs.create_stream(path, "rb") as stream:
        return stream.read()


def test_files_come_and_go(place: tuple[S3FileSystem, str]) -> None:
    fs, root = place
    path = fs.concat_path(fs.init_path(f"{root}/run/"), "a +file%20?#.bin")
    assert path == f"{root}/run/a +file%20?#.bin"
    fs.mkdir(root)
    assert not fs.exists(path)
    write(fs, path)
    assert fs.exists(path)
    assert read(fs, path) == BLOB
    with fs.create_stream(path, "rb") as stream:
        stream.seek(-5, io.SEEK_END)
        assert stream.read() == BLOB[-5:]
    fs.rename(path, f"{root}/other")
    assert (fs.exists(path), fs.exists(f"{root}/other")) == (False, True)
    assert read(fs, f"{root}/other") == BLOB
    fs.rename(f"{root}/other", f"{root}/other")
    assert fs.exists(f"{root}/other")
    fs.rm_file(f"{root}/other")
    fs.rm_file(f"{root}/other")
    assert not fs.exists(f"{root}/other")


def test_ls_lists_one_level(place: tuple[S3FileSystem, str]) -> None:
    fs, root = place
    for name in ("run/b", "run/a", "run/sub/c", "run/sub/deep/d", "running/e", "f"):
        write(fs, f"{root}/{name}", b"data")
    assert fs.ls(f"{root}/run") == [f"{root}/run/a", f"{root}/run/b", f"{root}/run/sub/"]
    assert fs.ls(f"{root}/run/") == fs.ls(f"{root}/run")
    assert fs.ls(root) == [f"{root}/f", f"{root}/run/", f"{root}/running/"]
    assert fs.ls(f"{root}/absent") == []


def test_an_exception_while_writing_leaves_nothing(place: tuple[S3FileSystem, str]) -> None:
    fs, root = place

    def fail() -> None:
        with fs.create_stream(f"{root}/file", "wb") as stream:
            stream.write(BLOB)
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail()
    assert not fs.exists(f"{root}/file")


def test_what_is_absent_raises(place: tuple[S3FileSystem, str]) -> None:
    fs, root = place
    with fs.create_stream(f"{root}/absent", "rb") as stream, pytest.raises(FileNotFoundError):
        stream.read(1)
    for target in ("absent", "other"):
        with pytest.raises(ObjectNotFoundError):
            fs.rename(f"{root}/absent", f"{root}/{target}")
        assert not fs.exists(f"{root}/other")


# ---- without a server


@pytest.fixture
def memory() -> MemoryTransport:
    transport = MemoryTransport("bucket", "other")
    transport.put("bucket", "file", BLOB)
    return transport


def fs_of(transport: Any, **options: Any) -> S3FileSystem:
    return S3FileSystem(s3_client=S3Client(transport=transport), **options)


@pytest.mark.parametrize("mode", ["r", "w", "ab", "rb+", "", "RB"])
def test_other_modes_are_refused(memory: MemoryTransport, mode: str) -> None:
    stream = fs_of(memory).create_stream("s3://bucket/file", mode)
    with pytest.raises(ValueError, match="mode must be 'rb' or 'wb'"), stream:
        pass


def test_denied_is_neither_yes_nor_no(memory: MemoryTransport) -> None:
    denied = FaultTransport(memory, [Fault("head", error=AccessDeniedError("no"))])
    with pytest.raises(PermissionError):
        fs_of(denied).exists("s3://bucket/file")
    unreachable = FaultTransport(memory, [Fault("head", error=EndpointError("gone"))])
    with pytest.raises(ConnectionError):
        fs_of(unreachable).exists("s3://bucket/file")


@pytest.mark.server
def test_wrong_keys_are_neither_yes_nor_no(seaweed: S3Server, seaweed_bucket: str) -> None:
    config = on(seaweed).replace(credentials=S3Credentials(seaweed.access_key, "wrong"))
    fs = S3FileSystem("us-east-1", s3client_config=config)
    for use in (fs.exists, fs.rm_file, fs.ls):
        with pytest.raises(PermissionError):
            use(f"s3://{seaweed_bucket}/file")


def test_a_failed_removal_raises(memory: MemoryTransport) -> None:
    transport = FaultTransport(memory, [Fault("delete", error=AccessDeniedError("no"))])
    fs = fs_of(transport)
    with pytest.raises(PermissionError):
        fs.rm_file("s3://bucket/file")
    assert fs.exists("s3://bucket/file")


def test_a_failed_copy_removes_nothing(memory: MemoryTransport) -> None:
    transport = FaultTransport(memory, [Fault("copy", error=EndpointError("gone"))])
    fs = fs_of(transport)
    with pytest.raises(ConnectionError):
        fs.rename("s3://bucket/file", "s3://bucket/new")
    assert read(fs, "s3://bucket/file") == BLOB


def test_renaming_stays_in_one_bucket(memory: MemoryTransport) -> None:
    recorder = RecordingTransport(memory)
    with pytest.raises(ValueError, match="between buckets: s3://bucket/file to s3://other/file"):
        fs_of(recorder).rename("s3://bucket/file", "s3://other/file")
    assert recorder.requests == ()


def test_the_marker_of_an_empty_folder_is_not_in_it(memory: MemoryTransport) -> None:
    for key in ("dir/", "dir/a"):
        memory.put("bucket", key, b"")
    assert fs_of(memory).ls("s3://bucket/dir") == ["s3://bucket/dir/a"]


def test_ls_follows_all_pages(memory: MemoryTransport) -> None:
    for number in range(1005):
        memory.put("bucket", f"many/{number:04}", b"")
    assert len(fs_of(memory).ls("s3://bucket/many")) == 1005


def test_the_reader_can_be_chosen(memory: MemoryTransport) -> None:
    recorder = RecordingTransport(memory)
    fs = fs_of(recorder, reader_constructor="range_based")
    with fs.create_stream("s3://bucket/file", "rb") as stream:
        stream.seek(100)
        assert stream.read(5) == BLOB[100:105]
    assert [request.start for request in recorder.of("get")] == [100]


BAD = [
    "bucket/file",
    "file:///tmp/file",
    "https://bucket/file",
    "S3://bucket/file",
    "s3:/bucket/file",
    "s3://",
    "s3:///file",
    "",
    Path("s3://bucket/file"),
    None,
    7,
]


@pytest.mark.parametrize("path", BAD, ids=repr)
def test_what_is_no_s3_address_is_refused_everywhere(memory: MemoryTransport, path: Any) -> None:
    recorder = RecordingTransport(memory)
    fs = fs_of(recorder)
    assert S3FileSystem.validate_checkpoint_id(path) is False
    good = "s3://bucket/file"
    uses = [
        lambda: fs.create_stream(path, "rb").__enter__(),
        lambda: fs.create_stream(path, "wb").__enter__(),
        lambda: fs.concat_path(path, "x"),
        lambda: fs.init_path(path),
        lambda: fs.mkdir(path),
        lambda: fs.exists(path),
        lambda: fs.rm_file(path),
        lambda: fs.ls(path),
        lambda: fs.rename(path, good),
        lambda: fs.rename(good, path),
    ]
    for use in uses:
        with pytest.raises(InvalidURIError):
            use()
    assert recorder.requests == ()


@pytest.mark.parametrize("path", ["s3://bucket", "s3://bucket/", "s3://bucket/run/step 1"])
def test_an_s3_address_is_a_checkpoint_id(path: str) -> None:
    assert S3FileSystem.validate_checkpoint_id(path) is True


def test_an_address_has_one_form() -> None:
    fs = fs_of(MemoryTransport())
    assert fs.init_path("s3://bucket/run//") == "s3://bucket/run"
    assert fs.concat_path("s3://bucket", "a") == "s3://bucket/a"
    assert fs.concat_path("s3://bucket/run/", "sub/a") == "s3://bucket/run/sub/a"
