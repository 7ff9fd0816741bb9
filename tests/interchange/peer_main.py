"""What both interpreters share: a state of all kinds of items, its digests, and the peers' runs.

As a program this file runs in the peers' environment, where torch_s3dcp is not installed:

    python peer_main.py '[{"action": "load", "peer": "fsspec", "path": "s3://bucket/key"}]'

It prints one line of JSON on standard output. The tests import it for everything else.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

HERE = Path(__file__).resolve().parent
PEERS_VARIABLE = "TORCH_S3DCP_PEERS_PYTHON"
# What s3torchconnector, s3fs and this package take from the environment.
REGION = "us-east-1"

_DTYPES = (
    *("uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"),
    *("float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    "float4_e2m1fn_x2",
)


class Tagged(torch.Tensor):
    """A tensor subclass with no behaviour of its own."""


def everything() -> dict[str, Any]:
    """A state with every kind of item; no value of it is all zeros."""
    ramp = torch.arange(1, 241, dtype=torch.float32).reshape(12, 20)
    waves = torch.complex(ramp, ramp + 0.5)
    bits = torch.arange(1, 65, dtype=torch.uint8)
    halves = torch.quantize_per_tensor(ramp, 0.5, 3, torch.qint8)
    scales = torch.linspace(0.5, 2, 12, dtype=torch.float64)
    rows = torch.quantize_per_channel(ramp, scales, torch.arange(12), 0, torch.quint8)
    noise = torch.rand(512, 1536, generator=torch.Generator().manual_seed(7))
    return {
        "scalar": torch.tensor(3.5),
        "count": torch.tensor(7),
        "empty": {"vector": torch.empty(0), "rows": torch.empty(3, 0, dtype=torch.bfloat16)},
        "model": {
            "weight": torch.nn.Parameter(ramp.clone()),
            "layers": [ramp[0].clone(), {"bias": ramp[1].clone(), "dropout": 0.25}],
            "embedding": noise,
        },
        "strided": {
            "transposed": ramp.t(),
            "every_second": ramp[::2],
            "inner": ramp[2:5, 3:9],
            "expanded": torch.tensor([5.0, 6.0]).expand(4, 2),
            "channels_last": ramp.reshape(2, 3, 5, 8).to(memory_format=torch.channels_last),
        },
        "lazy": {"conjugate": waves.conj(), "negative": waves.conj().imag},
        "dtypes": {
            name: bits.view(getattr(torch, name)) for name in _DTYPES if hasattr(torch, name)
        },
        "mask": ramp % 3 == 0,
        "quantised": {"per_tensor": halves, "per_channel": rows},
        "subclass": ramp.clone().as_subclass(Tagged),
        "progress": {
            "step": 42,
            "name": "run",
            "nothing": None,
            "schedule": [1, 2.5, "three"],
            "raw": bytes(range(256)),
        },
    }


def blank(value: Any) -> Any:
    """The same structure without its content: what a load is given to fill."""
    if isinstance(value, torch.Tensor):
        return _blank_quantised(value) if value.is_quantized else torch.zeros_like(value.detach())
    if isinstance(value, dict):
        return {key: blank(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [blank(entry) for entry in value]
    return "nothing was loaded here"


def _blank_quantised(tensor: torch.Tensor) -> torch.Tensor:
    # With the scales of the original: torch's readers bring numbers, not the quantiser.
    zeros = torch.zeros(tensor.shape)
    if tensor.qscheme() == torch.per_tensor_affine:
        return torch.quantize_per_tensor(
            zeros, tensor.q_scale(), tensor.q_zero_point(), tensor.dtype
        )
    scales, points = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
    return torch.quantize_per_channel(zeros, scales, points, 0, tensor.dtype)


def digests(value: Any, name: str = "") -> dict[str, str]:
    """A line for each leaf: dtype, shape and the SHA-256 of its bytes, or its repr."""
    if isinstance(value, torch.Tensor):
        return {name: _digest(value.detach())}
    pairs: Any = ()
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value)
    else:
        return {name: repr(value)}
    return {k: v for key, entry in pairs for k, v in digests(entry, f"{name}.{key}").items()}


def _digest(tensor: torch.Tensor) -> str:
    kind = f"{tensor.dtype} {list(tensor.shape)}"
    if tensor.is_quantized:
        kind += f" {tensor.qscheme()} {_quantiser(tensor)}"
        tensor = tensor.int_repr()
    plain = tensor.as_subclass(torch.Tensor).resolve_conj().resolve_neg().contiguous()
    data = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{kind} {hashlib.sha256(data).hexdigest()}"


def _quantiser(tensor: torch.Tensor) -> str:
    if tensor.qscheme() == torch.per_tensor_affine:
        return f"{tensor.q_scale()} {tensor.q_zero_point()}"
    return f"{tensor.q_per_channel_scales().tolist()} {tensor.q_per_channel_zero_points().tolist()}"


def load_everything(reader: Any) -> dict[str, str]:
    """Digests of what a storage reader loads into a blank state."""
    with torch.serialization.safe_globals([Tagged]), quiet():
        state = blank(everything())
        dcp.load(state, storage_reader=reader)
        return digests(state)


def save_everything(writer: Any) -> None:
    """Save the state through a storage writer."""
    with quiet():
        dcp.save(everything(), storage_writer=writer)


@contextmanager
def quiet() -> Iterator[None]:
    """torch warns of half of the items here, and of the absence of a process group."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def peers_python() -> str:
    """The peers' interpreter. Without one a test is skipped, in CI it fails."""
    import pytest

    # Relative to the repository, whatever the working folder is.
    python = HERE.parents[1] / (os.environ.get(PEERS_VARIABLE) or ".venv-peers/bin/python")
    if not python.is_file():
        reason = f"no peers' interpreter at {python}: run 'make peers' or set {PEERS_VARIABLE}"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return str(python)


def run_python(
    python: str, arguments: list[str], variables: Mapping[str, str] | None = None
) -> Any:
    """Run a program with an interpreter; return what it printed last, decoded from JSON."""
    done = subprocess.run(
        [python, *arguments],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **(variables or {})},
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"{arguments} ended with {done.returncode}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_peers(variables: Mapping[str, str], *specs: dict[str, Any]) -> list[Any]:
    """Do several things in the peers' environment, one after another; a result for each."""
    results = run_python(peers_python(), [__file__, json.dumps(specs)], variables)
    assert len(results) == len(specs)
    return list(results)


def ported(program: str) -> str:
    """The same program with only the import lines changed."""
    changed, count = re.subn(
        r"^from s3torchconnector[\w.]* import", "from torch_s3dcp import", program, flags=re.M
    )
    assert count, "there was no import to change"
    return changed


BLOB = "".join(f"{number:04d}" for number in range(1000)).encode()


class Chunks:
    """`BLOB[start:end]` less its last bytes, arriving by 100 bytes, as an iterator or by readinto.

    The reference takes the one, this package the other.
    """

    def __init__(self, start: int, end: int, missing: int) -> None:
        self.info = SimpleNamespace(size=len(BLOB))
        self._position, self._end = start, end - missing

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        data = self._take(100)
        if not data:
            raise StopIteration
        return data

    def readinto(self, buffer: memoryview) -> int:
        data = self._take(min(100, len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        pass

    def _take(self, size: int) -> bytes:
        data = BLOB[self._position : min(self._position + size, self._end)]
        self._position += len(data)
        return data


def run_case(case: str, names: dict[str, Any]) -> list[Any]:
    """Results of the expressions of a case; of an exception, its nearest builtin class.

    `name = expression` sets a name and has no result; if it fails, the case ends there.
    `log` lists the requests so far, `build` makes a reader with a class or constructor.
    """
    log: list[str] = []

    def build(
        reader: Any, bucket: str = "bkt", key: str = "run/f", missing: int = 0, **options: Any
    ) -> Any:
        def info() -> Any:
            log.append("HEAD")
            return SimpleNamespace(size=len(BLOB))

        def stream(start: int | None = None, end: int | None = None) -> Chunks:
            log.append("GET" if start is None and end is None else f"GET {start}-{end}")
            return Chunks(start or 0, len(BLOB) if end is None else end, missing)

        return reader(bucket=bucket, key=key, get_object_info=info, get_stream=stream, **options)

    scope = {**names, "build": build, "log": log}
    results = []
    for part in case.split("; "):
        name, equals, expression = part.partition(" = ")
        try:
            value = eval(expression if equals else part, scope)
        except Exception as error:  # noqa: BLE001 - any error is a result
            results.append(_shown(error))
            if equals:
                break
            continue
        if equals:
            scope[name] = value
        else:
            results.append(_shown(value))
    return results


def _shown(value: Any) -> Any:
    if isinstance(value, BaseException):
        return next(kind.__name__ for kind in type(value).__mro__ if kind.__module__ == "builtins")
    if isinstance(value, (bytes, bytearray)):
        text = value.decode("latin1").replace("\0", "~")
        return text if len(text) <= 24 else f"{text[:8]}..{len(text)}..{text[-8:]}"
    if isinstance(value, (list, tuple)):
        return [_shown(entry) for entry in value]
    return value if isinstance(value, (int, float, str, type(None))) else type(value).__name__


def _fsspec(spec: dict[str, Any]) -> Any:
    from torch.distributed.checkpoint import _fsspec_filesystem as fsspec

    if spec["action"] == "load":
        return fsspec.FsspecReader(spec["path"])
    return fsspec.FsspecWriter(spec["path"], **spec.get("options", {}))


def _s3torchconnector(spec: dict[str, Any]) -> Any:
    from s3torchconnector import S3ClientConfig, S3ReaderConstructor
    from s3torchconnector.dcp import S3StorageReader, S3StorageWriter, s3_prefix_strategy

    config = S3ClientConfig(force_path_style=True)
    if spec["action"] == "load":
        make, arguments = spec["reader"]
        constructor = getattr(S3ReaderConstructor, make)(**arguments)
        return S3StorageReader(REGION, spec["path"], config, constructor)
    options = dict(spec.get("options", {}))
    if "prefix_strategy" in options:
        name, arguments = options.pop("prefix_strategy")
        options["prefix_strategy"] = getattr(s3_prefix_strategy, name)(**arguments)
    return S3StorageWriter(REGION, spec["path"], config, **options)


def main() -> None:
    """Do what the first argument says."""
    results = []
    for spec in json.loads(sys.argv[1]):
        storage = {"fsspec": _fsspec, "s3torchconnector": _s3torchconnector}[spec["peer"]](spec)
        if spec["action"] == "load":
            results.append(load_everything(storage))
        else:
            save_everything(storage)
            results.append(type(storage).__module__)
    print(json.dumps(results))


if __name__ == "__main__":
    # By its own name: items of a class that lives here name the module they came from.
    import peer_main

    peer_main.main()
