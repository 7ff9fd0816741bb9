"""State dicts with every kind of item, a bit-exact comparison, and the places to save to."""

from __future__ import annotations

import dataclasses
import random
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from torch_s3dcp import (
    S3ClientConfig,
    S3Credentials,
    S3StorageReader,
    S3StorageWriter,
    available_readers,
)
from torch_s3dcp.testing.servers import S3Server
from torch_s3dcp.transports import BotoTransport, Transport

READERS = available_readers()


@dataclass
class RunInfo:
    """Something that only a pickle can carry: not a tensor, not a container."""

    step: int
    note: str


class Marked(torch.Tensor):
    """A tensor subclass without a state of its own. Loading it must be allowed by name."""


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The same random values for the same arguments, in every process."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


def odd_floats() -> torch.Tensor:
    """NaNs with payloads, both zeros, both infinities, denormals: equal only bit for bit."""
    patterns = [0x7FC00001, 0xFFC0BEEF, 0x7F800001, 0x80000000, 0, 0x7F800000, 0xFF800000, 1]
    return torch.tensor(patterns, dtype=torch.int64).to(torch.uint32).view(torch.float32)


def tensors() -> dict[str, torch.Tensor]:
    """A tensor of each kind that torch's own writer can store."""
    with quiet():
        return _tensors()


def _tensors() -> dict[str, torch.Tensor]:
    values = {
        "scalar": torch.tensor(3.5),
        "scalar_int": torch.tensor(-7),
        "empty": torch.empty(0),
        "empty_inside": torch.empty(3, 0, 2),
        "one": torch.ones(1),
        "odd": odd_floats(),
        "transposed": randn(4, 6, seed=1).t(),
        "channels_last": randn(2, 3, 4, 5, seed=2).to(memory_format=torch.channels_last),
        "slice": randn(10, 10, seed=3)[2:5, ::3],
        "expanded": randn(1, 5, seed=4).expand(4, 5),
        "conj": torch.complex(randn(3, 2, seed=5), randn(3, 2, seed=6)).conj(),
        "neg": torch.complex(randn(3, seed=7), randn(3, seed=8)).conj().imag,
        "complex32": torch.complex(randn(4, seed=9), randn(4, seed=10)).to(torch.complex32),
        "complex128": torch.complex(randn(2, seed=11), randn(2, seed=12)).to(torch.complex128),
        "bfloat16": randn(5, 7, seed=13, dtype=torch.bfloat16),
        "float16": randn(3, seed=14, dtype=torch.float16),
        "float64": randn(3, seed=15, dtype=torch.float64),
        "bool": randn(9, seed=16) > 0,
        "uint8": torch.arange(250, 256).to(torch.uint8),
        "uint16": torch.arange(65530, 65536).to(torch.uint16),
        "int64": torch.tensor([2**62, -(2**62)]),
        "many_dimensions": randn(2, 1, 2, 1, 2, 1, 2, seed=17),
        "parameter": torch.nn.Parameter(randn(3, 3, seed=18)),
        "frozen": torch.nn.Parameter(randn(3, seed=19), requires_grad=False),
        "quantised": torch.quantize_per_tensor(randn(4, 4, seed=20), 0.1, 3, torch.qint8),
    }
    small = torch.arange(64, dtype=torch.uint8).reshape(4, 16)
    for name in dir(torch):
        if name.startswith(("float8_", "float4_")):
            values[name] = small.view(getattr(torch, name))
    return values


def optimizer_states() -> dict[str, Any]:
    """State dicts of two optimizers after two steps: nested, with integer keys."""
    states: dict[str, Any] = {}
    for name, kind in (("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)):
        weights = [torch.nn.Parameter(randn(4, 3, seed=30)), torch.nn.Parameter(randn(4, seed=31))]
        options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        optimizer = kind(weights, lr=0.01, **options)
        for _ in range(2):
            sum((weight**2).sum() for weight in weights).backward()
            optimizer.step()
        states[name] = optimizer.state_dict()
    return states


def everything() -> dict[str, Any]:
    """Tensors of each kind, nested containers, blobs of each kind, optimizers, RNG states."""
    return {
        "tensors": tensors(),
        "nested": {"list": [randn(2, seed=40), {"deep": [randn(3, seed=41), 5]}], "empty": {}},
        "dots.in": {"a.b": randn(2, seed=42)},
        "blobs": {
            "int": 2**70,
            "text": "größe \N{SNOWMAN}",
            "float": 0.1,
            "none": None,
            "bytes": bytes(range(256)),
            "dataclass": RunInfo(7, "seven"),
            "ordered": OrderedDict(b=1, a=2),
            "numbers": [1, 2, 3],
        },
        "rng": {"torch": torch.get_rng_state(), "python": random.Random(3).getstate()},
        "optimizers": optimizer_states(),
    }


def blank(value: Any) -> Any:
    """The same shape of state with other content: what fails to be loaded stays visible."""
    if isinstance(value, torch.Tensor):
        return _other(value)
    if isinstance(value, Mapping):
        return {key: blank(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [blank(entry) for entry in value]
    return "not loaded"


def _other(value: torch.Tensor) -> torch.Tensor:
    if value.is_quantized:
        with quiet():
            return torch.quantize_per_tensor(torch.zeros(value.size()), 0.5, 0, value.dtype)
    size = tuple(value.size())
    count = value.numel() * value.element_size()
    raw = torch.full((count,), 0x5A, dtype=torch.uint8)
    made = raw.view(value.dtype).reshape(size) if count else torch.empty(size, dtype=value.dtype)
    return torch.nn.Parameter(made) if isinstance(value, torch.nn.Parameter) else made


def bits(value: torch.Tensor) -> tuple[object, ...]:
    """All that makes a tensor's content: dtype, shape, and every bit."""
    about: tuple[object, ...] = (value.dtype, tuple(value.size()))
    value = value.detach().cpu()
    if value.is_quantized:
        about += (value.q_scale(), value.q_zero_point())
        value = value.int_repr()
    if value.is_complex() or value.is_neg():
        value = value.resolve_conj().resolve_neg()
    if not value.numel():
        return (*about, b"")
    raw = value.contiguous().reshape(-1).view(torch.uint8)
    return (*about, bytes(raw.numpy()))


def assert_same(actual: Any, expected: Any, where: str = "") -> None:
    """Fail unless both are equal to the last bit; the message says where they differ."""
    if isinstance(expected, torch.Tensor):
        assert isinstance(actual, torch.Tensor), f"{where}: {actual!r}"
        found, wanted = bits(actual), bits(expected)
        assert found[:-1] == wanted[:-1], f"{where}: {found[:-1]} is not {wanted[:-1]}"
        assert found[-1] == wanted[-1], f"{where}: other bytes"
    elif isinstance(expected, Mapping):
        assert list(actual) == list(expected), f"{where}: other keys"
        for key in expected:
            assert_same(actual[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected), f"{where}: other length"
        for index, entry in enumerate(expected):
            assert_same(actual[index], entry, f"{where}/{index}")
    else:
        assert type(actual) is type(expected), f"{where}: {actual!r} is not {expected!r}"
        assert actual == expected, f"{where}: {actual!r} is not {expected!r}"


@dataclass(frozen=True)
class Place:
    """A bucket and how to reach it: makes writers and readers, and looks at what is there."""

    bucket: str
    transport: Transport

    def url(self, path: str) -> str:
        """Address of a checkpoint in this bucket."""
        return f"s3://{self.bucket}/{path}"

    def over(self, transport: Transport) -> Place:
        """The same bucket through another transport."""
        return dataclasses.replace(self, transport=transport)

    def writer(self, path: str, **options: Any) -> S3StorageWriter:
        return S3StorageWriter(self.url(path), transport=self.transport, **options)

    def reader(self, path: str, **options: Any) -> S3StorageReader:
        options.setdefault("safe_globals", [RunInfo])
        return S3StorageReader(self.url(path), transport=self.transport, **options)

    def save(self, state: dict[str, Any], path: str, planner: Any = None, **options: Any) -> Any:
        """Save without a process group."""
        with quiet():
            return dcp.save(state, storage_writer=self.writer(path, **options), planner=planner)

    def load(self, state: dict[str, Any], path: str, planner: Any = None, **options: Any) -> Any:
        """Load in place, without a process group; returns the state dict."""
        with quiet():
            dcp.load(state, storage_reader=self.reader(path, **options), planner=planner)
        return state

    def listing(self, path: str = "") -> list[str]:
        """All keys that begin with ``path``, sorted."""
        pages = self.transport.list(self.bucket, path)
        return [info.key for page in pages for info in page.object_info]

    def read(self, key: str) -> bytes:
        with self.transport.get(self.bucket, key) as body:
            return body.readall()

    def copy_down(self, path: str, folder: Path) -> Path:
        """The checkpoint as files, for torch's own reader."""
        for key in self.listing(f"{path}/"):
            file = folder / key.removeprefix(f"{path}/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(self.read(key))
        return folder

    def copy_up(self, folder: Path, path: str) -> None:
        """A checkpoint that torch's own writer made."""
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                key = f"{path}/{file.relative_to(folder).as_posix()}"
                self.transport.put(self.bucket, key, file.read_bytes())


def place_on(server: S3Server, bucket: str, **options: Any) -> Place:
    """A bucket on a server, with credentials given by hand."""
    config = S3ClientConfig(
        endpoint_url=server.endpoint_url,
        credentials=S3Credentials(server.access_key, server.secret_key, server.session_token),
        force_path_style=True,
        **options,
    )
    return Place(bucket, BotoTransport(server.region, config))


def open_uploads(place: Place) -> set[str]:
    """Ids of the multipart uploads that were neither completed nor aborted."""
    client = place.transport.client  # type: ignore[attr-defined]
    answer = client.list_multipart_uploads(Bucket=place.bucket)
    return {upload["UploadId"] for upload in answer.get("Uploads", [])}


class quiet(warnings.catch_warnings):
    """Hides what torch says about working without a process group, and about quantisation."""

    def __enter__(self) -> None:
        super().__enter__()
        for start in ("torch.distributed is ", ".*TypedStorage", ".*quantiz", "ComplexHalf"):
            warnings.filterwarnings("ignore", message=start)


def failures(error: BaseException) -> Sequence[BaseException]:
    """The ranks' errors inside a CheckpointException."""
    inside: dict[int, tuple[BaseException, Any]] = error.failures  # type: ignore[attr-defined]
    return [wrapped[0] for _, wrapped in sorted(inside.items())]
