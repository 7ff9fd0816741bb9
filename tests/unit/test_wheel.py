"""The wheel as a user gets it: built, installed elsewhere, and imported from there."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

import torch_s3dcp

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path | None = None, path: Path | None = None) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel)
    return target


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def sources() -> set[str]:
    package = ROOT / "torch_s3dcp"
    return {path.relative_to(ROOT).as_posix() for path in package.rglob("*.py")}


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = names_in(wheel)
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"torch_s3dcp"}
    (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
    code = {name for name in names if not name.startswith(info)}
    assert code == sources() | {"torch_s3dcp/py.typed"}
    assert f"{info}/licenses/LICENSE" in names
    for folder in ("tests", "benchmarks", "examples", "docs"):
        assert not any(folder in name.split("/") for name in names)


def test_the_licence_is_the_whole_one(wheel: Path) -> None:
    (name,) = (name for name in names_in(wheel) if name.endswith("/LICENSE"))
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(name) == (ROOT / "LICENSE").read_bytes()


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    (name,) = (name for name in names_in(wheel) if name.endswith("/METADATA"))
    with zipfile.ZipFile(wheel) as archive:
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    assert metadata["Name"] == "torch_s3dcp"
    assert metadata["Version"] == torch_s3dcp.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    needed = {line for line in metadata.get_all("Requires-Dist") if "extra" not in line}
    assert {line.split(">")[0].split(";")[0].strip() for line in needed} == {
        "torch",
        "boto3",
        "botocore",
        "s3transfer",
        "awscrt",
        "urllib3",
        "numpy",
    }


def test_no_path_of_this_machine_is_in_the_wheel(wheel: Path) -> None:
    places = {str(ROOT).encode(), str(Path.home()).encode() + b"/"}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            assert not any(place in archive.read(name) for place in places), name


def test_the_installed_package_works_from_anywhere(installed: Path, tmp_path: Path) -> None:
    code = """
import torch, torch.distributed.checkpoint as dcp, torch_s3dcp
from torch_s3dcp import S3StorageReader, S3StorageWriter
from torch_s3dcp.transports import MemoryTransport
transport, where = MemoryTransport("bucket"), "s3://bucket/run"
dcp.save({"a": torch.arange(9)}, storage_writer=S3StorageWriter(where, transport=transport),
         no_dist=True)
loaded = {"a": torch.zeros(9, dtype=torch.int64)}
dcp.load(loaded, storage_reader=S3StorageReader(where, transport=transport), no_dist=True)
print(torch_s3dcp.__file__, torch_s3dcp.__version__, int(loaded["a"].sum()), sep="\\n")
"""
    place, version, total = run("-c", code, cwd=tmp_path, path=installed).splitlines()
    assert Path(place).is_relative_to(installed)
    assert version == torch_s3dcp.__version__
    assert total == "36"


def test_every_module_of_the_wheel_imports(installed: Path, tmp_path: Path) -> None:
    modules = sorted(
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in sources()
        if "/testing/" not in name and not name.endswith("/__main__.py")
    )
    assert len(modules) > 20
    run("-c", f"import {', '.join(modules)}", cwd=tmp_path, path=installed)
