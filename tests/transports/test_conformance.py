"""Every transport on every server, against the suite."""

from __future__ import annotations

import dataclasses
import io
import secrets
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from torch_s3dcp import S3Client, S3ClientConfig, S3ReaderConstructor
from torch_s3dcp.exceptions import ConfigurationError, ObjectChangedError
from torch_s3dcp.testing.compose_suite import ComposeSuite
from torch_s3dcp.testing.servers import S3Server
from torch_s3dcp.testing.transport_suite import (
    BLOB,
    MIB,
    ORDINARY_KEYS,
    TransportSuite,
    Uneven,
    content,
)
from torch_s3dcp.testing.wrappers import (
    Fault,
    FaultTransport,
    LatencyTransport,
    RecordingTransport,
)
from torch_s3dcp.transports import BotoTransport, MemoryTransport


@pytest.fixture
def keys_of(monkeypatch: pytest.MonkeyPatch):
    """Puts a server's keys into the environment, so that transports stay picklable."""

    def use(server: S3Server) -> S3ClientConfig:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        return S3ClientConfig(
            endpoint_url=server.endpoint_url,
            force_path_style=True,
            part_size=5 * MIB,
            max_attempts=3,
        )

    return use


class TestMemory(ComposeSuite, TransportSuite):
    picklable = False

    @pytest.fixture
    def transport(self) -> MemoryTransport:
        return MemoryTransport("bucket")

    @pytest.fixture
    def bucket(self) -> str:
        return "bucket"


class TestRecordingMemory(TestMemory):
    """A wrapper is a transport too."""

    @pytest.fixture
    def transport(self) -> LatencyTransport:
        return LatencyTransport(RecordingTransport(MemoryTransport("bucket")), 0.0)


class _OnServer(TransportSuite):
    """The tests of a class share a bucket and a client: making either costs up to seconds."""

    server_fixture: ClassVar[str]
    client: Any = None

    @pytest.fixture(scope="class")
    @classmethod
    def class_bucket(cls, request: pytest.FixtureRequest) -> Iterator[str]:
        server = request.getfixturevalue(cls.server_fixture)
        name = "test-" + secrets.token_hex(8)
        server.create_bucket(name)
        cls.client = server.client()
        yield name
        server.delete_bucket(name)

    @pytest.fixture
    def bucket(self, class_bucket: str) -> Iterator[str]:
        yield class_bucket
        for entry in self.client.list_objects_v2(Bucket=class_bucket).get("Contents", []):
            self.client.delete_object(Bucket=class_bucket, Key=entry["Key"])

    @pytest.fixture
    def transport(self, request: pytest.FixtureRequest, keys_of) -> Any:
        return BotoTransport("us-east-1", keys_of(request.getfixturevalue(self.server_fixture)))

    def open_uploads(self, bucket: str) -> int:
        return len(self.client.list_multipart_uploads(Bucket=bucket).get("Uploads", []))


class TestMoto(ComposeSuite, _OnServer):
    server_fixture = "moto_server"
    checks_versions = checks_copies = False
    large = 6 * MIB + 1


class TestRecordingMoto(TestMoto):
    """Pickling included."""

    @pytest.fixture
    def transport(self, moto_server, keys_of):
        return RecordingTransport(BotoTransport("us-east-1", keys_of(moto_server)))


@pytest.mark.server
class TestSeaweed(ComposeSuite, _OnServer):
    server_fixture = "seaweed"
    creates_buckets = True
    # It takes a slash at the end for a folder, and lists two slashes as one.
    keys = tuple(key for key in TransportSuite.keys if key not in ("a/", "a//b"))


@pytest.mark.server
class TestRclone(_OnServer):
    """The degraded server: works, or fails cleanly."""

    server_fixture = "rclone_server"
    conditions = False
    keeps_metadata = False
    keys = ORDINARY_KEYS

    def open_uploads(self, bucket: str) -> int:
        try:
            return super().open_uploads(bucket)
        except self.client.exceptions.NoSuchUpload:
            return 0  # its answer where there are none

    def test_a_replaced_object_is_never_mixed(self, transport: BotoTransport, bucket: str) -> None:
        """It ignores If-Match: the answer's ETag must be compared."""
        transport.put(bucket, "object", BLOB)
        constructor = S3ReaderConstructor.range_based(100)
        with S3Client(transport=transport).get_object(
            bucket, "object", reader_constructor=constructor
        ) as reader:
            assert reader.read(10) == BLOB[:10]
            transport.put(bucket, "object", BLOB[::-1])
            reader.seek(0)
            with pytest.raises(ObjectChangedError):
                reader.read(5000)


def test_unknown_sizes_do_not_hold_one_another_up(moto_server, moto_bucket, keys_of) -> None:
    """More writers open at once than there are threads, fed in turn by one thread."""
    client = S3Client("us-east-1", s3client_config=keys_of(moto_server))
    writers = [client.put_object(moto_bucket, f"object-{i}") for i in range(6)]
    block = content(9 * MIB)
    for writer in [*reversed(writers), *writers, *reversed(writers), *writers]:
        writer.write(block)
    for writer in writers:
        writer.close()
    for i in range(6):
        assert client.head_object(moto_bucket, f"object-{i}").size == 4 * len(block)


def test_a_copy_in_parts_keeps_the_metadata(
    moto_server, moto_bucket, keys_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch_s3dcp.transports.boto.LARGEST_SINGLE_COPY", 6 * MIB)
    transport = BotoTransport("us-east-1", keys_of(moto_server))
    data = content(11 * MIB)
    transport.put(moto_bucket, "object", data, metadata={"step": "7"})
    transport.copy(moto_bucket, "object", moto_bucket, "copy")
    with transport.get(moto_bucket, "copy", 0, len(data)) as body:
        assert dict(body.info.metadata) == {"step": "7"}
        assert (body.info.etag or "").strip('"').endswith("-3")
        assert body.readall() == data


def test_storage_class_of_one_upload(moto_server, moto_bucket, keys_of) -> None:
    config = dataclasses.replace(keys_of(moto_server), storage_class="STANDARD_IA")
    transport = BotoTransport("us-east-1", config)
    for key, given in (("configured", None), ("given", "GLACIER_IR")):
        transport.upload(
            moto_bucket, key, io.BytesIO(b"data"), expected_size=4, storage_class=given
        )
    found = moto_server.client().list_objects_v2(Bucket=moto_bucket)["Contents"]
    classes = {entry["Key"]: entry["StorageClass"] for entry in found}
    assert classes == {"configured": "STANDARD_IA", "given": "GLACIER_IR"}


def test_parts_are_full_although_the_stream_gives_little(moto_server, moto_bucket, keys_of) -> None:
    transport = BotoTransport("us-east-1", keys_of(moto_server))
    size = 12 * MIB
    transport.upload(moto_bucket, "object", Uneven(size, step=1000), expected_size=size)
    etag = transport.head(moto_bucket, "object").etag
    assert etag is not None
    assert etag.strip('"').endswith("-3"), "12 MiB in parts of 5 MiB are three parts"


def test_recording_counts_what_was_moved() -> None:
    recorder = RecordingTransport(MemoryTransport("bucket"))
    recorder.put("bucket", "object", BLOB)
    recorder.upload("bucket", "other", Uneven(700), expected_size=700)
    with recorder.get("bucket", "object", 100, 400) as body:
        body.read(250)
        assert recorder.open_bodies == 1
    assert len(list(recorder.list("bucket", page_size=1))) == 2
    summary = recorder.summary()
    assert summary.requests == {"put": 1, "upload": 1, "get": 1, "list": 2}
    assert (summary.received, summary.sent) == (250, 5700)
    assert (recorder.of("get")[0].start, recorder.of("get")[0].end) == (100, 400)
    assert recorder.open_bodies == 0
    recorder.clear()
    assert recorder.requests == ()


def test_faults_strike_where_they_are_told_to() -> None:
    memory = MemoryTransport("bucket")
    for key in ("a", "b"):
        memory.put("bucket", key, BLOB)
    faults = FaultTransport(memory, [Fault("get", body="flip", after=300, nth=2, key="a")])
    bodies = [faults.get("bucket", key).readall() for key in ("a", "b", "a", "a")]
    differ = [[i for i, byte in enumerate(body) if byte != BLOB[i]] for body in bodies]
    assert differ == [[], [], [300], []]
    assert faults.struck == 1
    for wrong in ({"operation": "get"}, {"operation": "eat", "body": "cut"}):
        with pytest.raises(ConfigurationError):
            Fault(**wrong)
    with pytest.raises(ConfigurationError, match="only a get has a body"):
        Fault("put", body="cut")


def test_servers_and_wrappers_need_no_test_tools() -> None:
    program = (
        "import sys; sys.modules['hypothesis'] = sys.modules['pytest'] = None\n"
        "from torch_s3dcp.testing import MotoServer, RecordingTransport, servers\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
