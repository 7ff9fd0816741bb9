"""The public surface: what is promised is there, is explained, and is all there is."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import torch_s3dcp

PUBLIC = {name: getattr(torch_s3dcp, name, None) for name in torch_s3dcp.__all__}
# What the reference exports: a user's code moves over by changing the import.
REFERENCE = [
    "BinaryPrefixStrategy",
    "DCPOptimizedConstructor",
    "DefaultPrefixStrategy",
    "HexPrefixStrategy",
    "NumericPrefixStrategy",
    "RoundRobinPrefixStrategy",
    "S3Client",
    "S3ClientConfig",
    "S3FileSystem",
    "S3PrefixStrategyBase",
    "S3Reader",
    "S3ReaderConstructor",
    "S3StorageReader",
    "S3StorageWriter",
]
PACKAGES_WITH_ALL = ["torch_s3dcp", "torch_s3dcp.readers", "torch_s3dcp.transports"]


def of_the_package(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).startswith("torch_s3dcp")


def public_members(cls: type) -> list[tuple[str, Any]]:
    """Methods, properties and the like that the class itself defines."""
    found = []
    for name, value in vars(cls).items():
        function = getattr(value, "__func__", value)
        if not name.startswith("_") and (
            inspect.isroutine(function) or isinstance(value, property)
        ):
            found.append((name, value))
    return found


MEMBERS = [
    pytest.param(value, name, id=f"{value.__name__}.{name}")
    for value in PUBLIC.values()
    if isinstance(value, type)
    for name, _ in public_members(value)
]


@pytest.mark.parametrize("module", PACKAGES_WITH_ALL)
def test_all_is_sorted_and_importable(module: str) -> None:
    package = importlib.import_module(module)
    assert list(package.__all__) == sorted(set(package.__all__))
    namespace: dict[str, Any] = {}
    exec(f"from {module} import *", namespace)
    assert set(package.__all__) <= set(namespace)


@pytest.mark.parametrize("module", PACKAGES_WITH_ALL)
def test_nothing_public_is_left_out(module: str) -> None:
    package = importlib.import_module(module)
    public = {
        name
        for name, value in vars(package).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert public <= set(package.__all__)


@pytest.mark.parametrize("name", REFERENCE)
def test_the_names_of_the_reference_are_there(name: str) -> None:
    assert name in torch_s3dcp.__all__
    assert of_the_package(PUBLIC[name])


@pytest.mark.parametrize("name", sorted(set(PUBLIC) - {"__version__"}))
def test_every_public_name_is_explained(name: str) -> None:
    value = PUBLIC[name]
    assert of_the_package(value), "somebody else's name is exported"
    own = vars(value).get("__doc__") if isinstance(value, type) else value.__doc__
    assert own, "no docstring of its own"
    # dataclasses write a signature where there is none.
    assert not own.startswith(f"{name}("), "no docstring of its own"
    first = own.strip().splitlines()[0]
    assert first.endswith((".", "``", "``."))


def test_there_are_members_to_look_at() -> None:
    assert len(MEMBERS) > 40


@pytest.mark.parametrize(("cls", "name"), MEMBERS)
def test_every_public_method_is_explained(cls: type, name: str) -> None:
    assert inspect.getdoc(getattr(cls, name)), "neither it nor what it overrides has a docstring"


def test_every_module_says_what_it_is_for() -> None:
    modules = sorted(Path(torch_s3dcp.__path__[0]).rglob("*.py"))
    assert len(modules) > 20
    silent = [path.name for path in modules if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


def test_types_are_shipped() -> None:
    assert resources.files("torch_s3dcp").joinpath("py.typed").is_file()


def test_the_version_is_one() -> None:
    numbers = torch_s3dcp.__version__.split(".")
    assert len(numbers) == 3
    assert all(number.isdigit() for number in numbers[:2])


def test_importing_the_package_brings_no_test_tool_along() -> None:
    code = "import sys, torch_s3dcp; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert "torch_s3dcp.client" in imported
    assert not imported & {"moto", "hypothesis", "pytest", "torch_s3dcp.testing"}
