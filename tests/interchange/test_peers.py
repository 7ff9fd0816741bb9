"""Interchange with s3torchconnector and with torch's fsspec pair over a real server.

The peers run in an environment of their own (`make peers`). Bits are compared through digests
that `peer_main` prints there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import peer_main
import pytest

from torch_s3dcp import (
    BinaryPrefixStrategy,
    RoundRobinPrefixStrategy,
    S3StorageReader,
    S3StorageWriter,
    available_readers,
)
from torch_s3dcp.testing.servers import SeaweedServer

pytestmark = [pytest.mark.peers, pytest.mark.server]

LOADERS = {
    "sequential": {"peer": "s3torchconnector", "reader": ["sequential", {}]},
    "range_based": {"peer": "s3torchconnector", "reader": ["range_based", {}]},
    "range_unbuffered": {"peer": "s3torchconnector", "reader": ["range_based", {"buffer_size": 0}]},
    "dcp_optimized": {"peer": "s3torchconnector", "reader": ["dcp_optimized", {}]},
    "dcp_no_gaps": {"peer": "s3torchconnector", "reader": ["dcp_optimized", {"max_gap_size": 0}]},
    "fsspec": {"peer": "fsspec"},
}
OUR_LAYOUTS: dict[str, dict[str, Any]] = {
    "default": {},
    "threads": {"thread_count": 3},
    "file_per_item": {"single_file_per_rank": False, "thread_count": 4},
    "binary_epoch": {"prefix_strategy": BinaryPrefixStrategy(2, 4, 3), "thread_count": 2},
    "round_robin": {"prefix_strategy": RoundRobinPrefixStrategy(["one/two"])},
}
# Where the peers' data objects must lie; the last part is the start of their names.
THEIR_LAYOUTS: dict[str, tuple[dict[str, Any], str]] = {
    "connector": ({"peer": "s3torchconnector"}, "__0_0.distcp"),
    "connector_threads": (
        {"peer": "s3torchconnector", "options": {"thread_count": 2}},
        "__0_1.distcp",
    ),
    "connector_binary": (
        {
            "peer": "s3torchconnector",
            "options": {
                "prefix_strategy": [
                    "BinaryPrefixStrategy",
                    {"epoch_num": 3, "min_prefix_length": 4, "prefix_count": 2},
                ]
            },
        },
        "0000/epoch_3/__0_0.distcp",
    ),
    "connector_round_robin": (
        {
            "peer": "s3torchconnector",
            "options": {"prefix_strategy": ["RoundRobinPrefixStrategy", {"user_prefixes": ["x"]}]},
        },
        "x/__0_0.distcp",
    ),
    "fsspec": ({"peer": "fsspec"}, "__0_0.distcp"),
    "fsspec_threads": ({"peer": "fsspec", "options": {"thread_count": 2}}, "__0_1.distcp"),
}


@pytest.fixture(scope="module")
def bucket(seaweed: SeaweedServer) -> Iterator[str]:
    peer_main.peers_python()
    seaweed.create_bucket("peers")
    yield "peers"
    seaweed.delete_bucket("peers")


@pytest.fixture(autouse=True)
def environment(seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name, value in seaweed.environment().items():
        monkeypatch.setenv(name, value)
    return seaweed.environment()


@pytest.fixture(scope="module")
def expected() -> dict[str, str]:
    with peer_main.quiet():
        return peer_main.digests(peer_main.everything())


@pytest.fixture(scope="module")
def saved_by_peers(seaweed: SeaweedServer, bucket: str) -> str:
    """Address under which each of `THEIR_LAYOUTS` lies."""
    base = f"s3://{bucket}/theirs"
    specs = [
        {**spec, "action": "save", "path": f"{base}/{name}"}
        for name, (spec, _) in THEIR_LAYOUTS.items()
    ]
    modules = peer_main.run_peers(seaweed.environment(), *specs)
    # It was really the peers who wrote.
    assert {module.split(".")[0] for module in modules} == {"s3torchconnector", "torch"}
    return base


@pytest.mark.parametrize("layout", OUR_LAYOUTS)
def test_peers_load_what_we_write(
    layout: str, bucket: str, environment: dict[str, str], expected: dict[str, str]
) -> None:
    address = f"s3://{bucket}/ours/{layout}"
    peer_main.save_everything(S3StorageWriter(address, **OUR_LAYOUTS[layout]))
    specs = [{**spec, "action": "load", "path": address} for spec in LOADERS.values()]
    loaded = peer_main.run_peers(environment, *specs)
    for name, digests in zip(LOADERS, loaded, strict=True):
        assert digests == expected, name


@pytest.mark.parametrize("reader", available_readers())
@pytest.mark.parametrize("layout", THEIR_LAYOUTS)
def test_we_load_what_peers_write(
    layout: str, reader: str, saved_by_peers: str, seaweed: SeaweedServer, expected: dict[str, str]
) -> None:
    address = f"{saved_by_peers}/{layout}"
    bucket, _, key = address.removeprefix("s3://").partition("/")
    seaweed.client().head_object(Bucket=bucket, Key=f"{key}/{THEIR_LAYOUTS[layout][1]}")
    ours = S3StorageReader(address, reader_constructor=reader)
    assert peer_main.load_everything(ours) == expected


def test_we_replace_what_a_peer_wrote_and_it_reads_the_new(
    bucket: str, seaweed: SeaweedServer, environment: dict[str, str], expected: dict[str, str]
) -> None:
    """A job may move over in the middle of a run, saving to the same place."""
    address = f"s3://{bucket}/mixed"
    peer = {"peer": "s3torchconnector", "path": address}
    peer_main.run_peers(environment, {**peer, "action": "save"})
    peer_main.save_everything(S3StorageWriter(address))

    listed = seaweed.client().list_objects_v2(Bucket=bucket, Prefix="mixed/")["Contents"]
    names = {entry["Key"].removeprefix("mixed/") for entry in listed}
    assert len(names) == 2
    assert ".metadata" in names
    assert "__0_0.distcp" not in names
    load = {**peer, "action": "load", "reader": ["dcp_optimized", {}]}
    assert peer_main.run_peers(environment, load) == [expected]


# The reference's documented examples (README of s3torchconnector 1.5.0: distributed checkpoints,
# prefix strategies, reader configurations, direct use of the client), one after another. Only
# the import lines are changed for the run here.
EXAMPLES = """
import json, sys
import peer_main
import torch
import torch.distributed.checkpoint as DCP
from s3torchconnector.dcp import S3StorageWriter, S3StorageReader
from s3torchconnector.dcp import S3PrefixStrategyBase, BinaryPrefixStrategy, HexPrefixStrategy
from s3torchconnector import S3ClientConfig, S3ReaderConstructor
from s3torchconnector._s3client import S3Client

REGION, BUCKET_NAME, KEY = sys.argv[1:]
CHECKPOINT_URI = f"s3://{BUCKET_NAME}/{KEY}/"
results = {}

def new_model(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.BatchNorm1d(32))

# Save distributed checkpoint to S3
model = new_model(1)
results["saved"] = peer_main.digests(model.state_dict())
s3_storage_writer = S3StorageWriter(
    region=REGION,
    path=CHECKPOINT_URI,
    thread_count=8, # optional; number of IO threads to use to write
)
DCP.save(
    state_dict=model.state_dict(),
    storage_writer=s3_storage_writer,
)

# Load distributed checkpoint from S3
def load(**options):
    model = new_model(2)
    model_state_dict = model.state_dict()
    s3_storage_reader = S3StorageReader(
        region=REGION,
        **{"path": CHECKPOINT_URI, **options},
    )
    DCP.load(
        state_dict=model_state_dict,
        storage_reader=s3_storage_reader,
    )
    model.load_state_dict(model_state_dict)
    return peer_main.digests(model.state_dict())

results["default"] = load()
results["config"] = load(s3client_config=S3ClientConfig(max_attempts=3, part_size=16 * 1024 * 1024))
for name, reader_constructor in {
    "sequential": S3ReaderConstructor.sequential(),
    "range_based": S3ReaderConstructor.range_based(),
    "range_based_16": S3ReaderConstructor.range_based(buffer_size=16*1024*1024),
    "range_based_0": S3ReaderConstructor.range_based(buffer_size=0),
    "dcp_optimized": S3ReaderConstructor.dcp_optimized(),
    "dcp_optimized_32": S3ReaderConstructor.dcp_optimized(max_gap_size=32*1024*1024),
    "dcp_optimized_inf": S3ReaderConstructor.dcp_optimized(max_gap_size=float("inf")),
    "dcp_optimized_0": S3ReaderConstructor.dcp_optimized(max_gap_size=0),
    "generic": S3ReaderConstructor.default(),
}.items():
    results[name] = load(reader_constructor=reader_constructor)
    results[name + " type"] = S3ReaderConstructor.get_reader_type_string(reader_constructor)

class CustomPrefixStrategy(S3PrefixStrategyBase):
    def __init__(self, custom_param):
        super().__init__()
        self.custom_param = custom_param

    def generate_prefix(self, rank: int) -> str:
        return f"custom_{self.custom_param}/{rank}/"

s3_client = S3Client(region=REGION)
for name, strategy in {
    "binary": BinaryPrefixStrategy(epoch_num=5, min_prefix_length=10, prefix_count=16),
    "hex": HexPrefixStrategy(epoch_num=1, min_prefix_length=4),
    "custom": CustomPrefixStrategy("p"),
}.items():
    path = f"s3://{BUCKET_NAME}/{KEY}-{name}"
    writer = S3StorageWriter(region=REGION, path=path, prefix_strategy=strategy)
    DCP.save(state_dict=model.state_dict(), storage_writer=writer)
    results[name] = load(path=path)
    pages = s3_client.list_objects(BUCKET_NAME, prefix=f"{KEY}-{name}/")
    keys = [info.key for page in pages for info in page.object_info]
    results[name + " folders"] = sorted(key.removeprefix(KEY).rpartition("/")[0] for key in keys)

# Writing data to S3
OBJECT_KEY = f"{KEY}.bin"
data = b"content" * 1048576
s3writer = s3_client.put_object(bucket=BUCKET_NAME, key=OBJECT_KEY)
s3writer.write(data)
s3writer.close()

# Reading data from S3
s3reader = s3_client.get_object(bucket=BUCKET_NAME, key=OBJECT_KEY)
results["client"] = s3reader.read() == data
reader_constructor = S3ReaderConstructor.range_based(
    buffer_size=0  # No buffer, for direct transfer
)
s3reader = s3_client.get_object(
    bucket=BUCKET_NAME,
    key=OBJECT_KEY,
    reader_constructor=reader_constructor
)
buffer = bytearray(1024 * 1024)
s3reader.seek(1 * 1024 * 1024 + 1)
results["client range"] = [s3reader.readinto(buffer), buffer == data[1048577:2097153]]
results["client size"] = s3_client.head_object(BUCKET_NAME, OBJECT_KEY).size
s3_client.delete_object(BUCKET_NAME, OBJECT_KEY)
print(json.dumps(results))
"""
ROUND_ROBIN = """
import json
from s3torchconnector.dcp import RoundRobinPrefixStrategy, S3StorageWriter
strategy = RoundRobinPrefixStrategy(
    user_prefixes=["shard1", "shard2", "shard3"],
    epoch_num=5  # Optional: for checkpoint versioning
)
print(json.dumps([strategy(rank) for rank in range(4)]))
"""


def test_documented_examples_run_with_only_the_import_changed(
    bucket: str, environment: dict[str, str]
) -> None:
    program, region = ["-W", "ignore", "-c"], environment["AWS_DEFAULT_REGION"]
    there = peer_main.run_python(
        peer_main.peers_python(), [*program, EXAMPLES, region, bucket, "there"], environment
    )
    here = peer_main.run_python(
        sys.executable, [*program, peer_main.ported(EXAMPLES), region, bucket, "here"], environment
    )
    assert here == there

    # And what they agree on is right.
    loads = [value for value in here.values() if isinstance(value, dict)]
    assert len(loads) == 15
    assert all(value == here["saved"] for value in loads)
    assert [here["client"], here["client range"]] == [True, [1048576, True]]
    assert here["client size"] == 7 * 1048576
    assert here["binary folders"] == ["-binary", "-binary/0000000000/epoch_5"]
    assert here["custom folders"] == ["-custom", "-custom/custom_p/0"]


def test_the_documented_round_robin_strategy_can_be_imported_here(
    environment: dict[str, str],
) -> None:
    """The reference documents this import but forgot to export the name (1.5.0)."""
    wanted = [f"shard{rank % 3 + 1}/epoch_5/__{rank}_" for rank in range(4)]
    assert peer_main.run_python(sys.executable, ["-c", peer_main.ported(ROUND_ROBIN)]) == wanted
    with pytest.raises(AssertionError, match="cannot import name 'RoundRobinPrefixStrategy'"):
        peer_main.run_python(peer_main.peers_python(), ["-c", ROUND_ROBIN], environment)
    module = ROUND_ROBIN.replace("s3torchconnector.dcp", "s3torchconnector.dcp.s3_prefix_strategy")
    exported = module.replace(", S3StorageWriter", "")
    assert peer_main.run_python(peer_main.peers_python(), ["-c", exported], environment) == wanted
