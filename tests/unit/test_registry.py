"""Names of readers: built in, registered in this process, and from installed plug-ins."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from torch_s3dcp import (
    DCPOptimizedConstructor,
    RangedS3Reader,
    S3Client,
    S3ReaderConstructor,
    SequentialS3Reader,
    available_readers,
    get_reader,
    register_reader,
    unregister_reader,
)
from torch_s3dcp.exceptions import ReaderRegistryError
from torch_s3dcp.readers import ReaderConstructor
from torch_s3dcp.registry import reader_name, resolve_reader
from torch_s3dcp.transports import MemoryTransport

PLUGINS = Path(__file__).parents[1] / "plugins"
BUILT_IN = ("dcp_optimized", "range_based", "sequential")
type_string = S3ReaderConstructor.get_reader_type_string


class ThirdParty(SequentialS3Reader):
    """A reader class from elsewhere."""

    @classmethod
    def build(cls, *args: Any) -> ThirdParty:
        return cls(*args)


class ThirdPartyFactory:
    """A constructor with settings of its own."""

    def __init__(self, block: int = 1) -> None:
        self.block = block

    def __call__(self, *args: Any) -> ThirdParty:
        return ThirdParty(*args)


def third_party(*args: Any) -> ThirdParty:
    return ThirdParty(*args)


@contextmanager
def registered(name: str, constructor: Any) -> Iterator[None]:
    register_reader(name, constructor)
    try:
        yield
    finally:
        unregister_reader(name)


def test_the_built_in_readers_are_known() -> None:
    assert set(BUILT_IN) <= set(available_readers())
    assert list(available_readers()) == sorted(available_readers())


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_reader_answers_with_its_name(name: str) -> None:
    constructor = get_reader(name)
    assert isinstance(constructor, ReaderConstructor)
    assert type_string(constructor) == name
    assert resolve_reader(name, "no such reader") == constructor


@pytest.mark.parametrize("name", ["range_based", "sequential"])
def test_a_built_in_reader_reads(name: str) -> None:
    transport = MemoryTransport("bucket")
    transport.put("bucket", "key", b"0123456789")
    client = S3Client(transport=transport)
    with client.get_object("bucket", "key", reader_constructor=name) as reader:
        reader.seek(3)
        assert reader.read(4) == b"3456"


@pytest.mark.parametrize(
    ("constructor", "name"),
    [
        (None, "sequential"),
        (S3ReaderConstructor.default(), "sequential"),
        (S3ReaderConstructor.sequential(), "sequential"),
        (SequentialS3Reader, "sequential"),
        (S3ReaderConstructor.range_based(), "range_based"),
        (S3ReaderConstructor.range_based(buffer_size=0), "range_based"),
        (S3ReaderConstructor.range_based(4096), "range_based"),
        (RangedS3Reader, "range_based"),
        (partial(partial(RangedS3Reader), buffer_size=1), "range_based"),
        (S3ReaderConstructor.dcp_optimized(), "dcp_optimized"),
        (S3ReaderConstructor.dcp_optimized(max_gap_size=float("inf")), "dcp_optimized"),
        (DCPOptimizedConstructor(0), "dcp_optimized"),
        (ThirdParty, "unknown"),
        (ThirdPartyFactory(), "unknown"),
        (lambda *args: SequentialS3Reader(*args), "unknown"),
        (partial(third_party), "unknown"),
        ("sequential", "unknown"),
        (42, "unknown"),
    ],
)
def test_the_type_string_of_every_constructor(constructor: Any, name: str) -> None:
    assert type_string(constructor) == name


@pytest.mark.parametrize(
    ("registered_as", "used"),
    [
        (ThirdParty, ThirdParty),
        (ThirdParty, partial(ThirdParty)),
        (partial(ThirdParty), ThirdParty),
        (third_party, third_party),
        (third_party, partial(third_party)),
        (ThirdPartyFactory(1), ThirdPartyFactory(2)),
        (ThirdParty.build, ThirdParty.build),
    ],
    ids=["class", "partial", "from partial", "function", "partial function", "instance", "method"],
)
def test_a_third_party_reader_answers_with_its_registered_name(
    registered_as: Any, used: Any
) -> None:
    assert type_string(used) == "unknown"
    with registered("third", registered_as):
        assert type_string(used) == "third"
        assert reader_name(get_reader("third")) == "third"
        assert "third" in available_readers()
        assert type_string(S3ReaderConstructor.range_based()) == "range_based"
        assert type_string(None) == "sequential"
    assert type_string(used) == "unknown"
    assert "third" not in available_readers()


def test_two_settings_of_one_reader_have_two_names() -> None:
    small, large = partial(RangedS3Reader, buffer_size=1), partial(RangedS3Reader, buffer_size=2)
    with registered("small", small), registered("large", large):
        assert type_string(get_reader("small")) == "small"
        assert type_string(get_reader("large")) == "large"
        assert type_string(S3ReaderConstructor.range_based()) == "range_based"


def test_registering_the_same_again_changes_nothing() -> None:
    for constructor in (ThirdParty, ThirdParty.build):
        with registered("third", constructor):
            register_reader("third", constructor)
            assert get_reader("third") == constructor


def test_a_taken_name_is_refused_and_its_owner_named() -> None:
    for name in BUILT_IN:
        with pytest.raises(ReaderRegistryError, match=f"{name!r} is taken by a built-in"):
            register_reader(name, ThirdParty)
    with registered("third", ThirdParty):
        with pytest.raises(ReaderRegistryError, match=r"'third' is taken by .*ThirdParty"):
            register_reader("third", third_party)
        assert get_reader("third") is ThirdParty


@pytest.mark.parametrize("name", ["", "  ", None, 5, b"third"])
def test_a_name_is_a_word(name: Any) -> None:
    with pytest.raises(ReaderRegistryError, match="must be a word"):
        register_reader(name, ThirdParty)


@pytest.mark.parametrize("constructor", [None, "goodreader:GoodReader", 5])
def test_a_constructor_is_callable(constructor: Any) -> None:
    with pytest.raises(ReaderRegistryError, match=r"'third' must be callable with \(bucket, key"):
        register_reader("third", constructor)
    assert "third" not in available_readers()


@pytest.mark.parametrize("name", ["nobody", *BUILT_IN])
def test_only_what_was_registered_is_unregistered(name: str) -> None:
    get_reader("sequential")
    with pytest.raises(ReaderRegistryError, match=f"no reader {name!r} was registered"):
        unregister_reader(name)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with registered("third", ThirdParty), pytest.raises(ReaderRegistryError) as caught:
        get_reader("dcp-optimised")
    assert "'dcp-optimised'" in str(caught.value)
    for name in (*BUILT_IN, "third"):
        assert name in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_resolving_takes_a_name_a_constructor_or_nothing() -> None:
    assert resolve_reader(None, "sequential") is SequentialS3Reader
    assert resolve_reader("range_based", "sequential") is RangedS3Reader
    assert resolve_reader(third_party, "sequential") is third_party
    for wrong in (5, b"sequential", ["sequential"]):
        with pytest.raises(ReaderRegistryError, match="must be a name or callable"):
            resolve_reader(wrong, "sequential")  # type: ignore[arg-type]
    with pytest.raises(ReaderRegistryError, match="no reader 'x'"):
        resolve_reader("x", "sequential")


@pytest.fixture(scope="session")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Really installs the named distributions; returns a PYTHONPATH on which they are."""
    installed: dict[str, Path] = {}

    def install(*names: str) -> str:
        for name in names:
            if name not in installed:
                target = tmp_path_factory.mktemp(name)
                offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
                pip = [sys.executable, "-m", "pip", "install", *offline]
                subprocess.run([*pip, "--target", target, PLUGINS / name], check=True)
                installed[name] = target
        return os.pathsep.join(str(installed[name]) for name in names)

    return install


@pytest.fixture(scope="session")
def run_with(plugins: Callable[..., str]) -> Callable[..., str]:
    """Runs code in a fresh process that has the named plug-ins; returns what it printed."""

    def run(names: tuple[str, ...], code: str) -> str:
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join([plugins(*names), root])
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


FAILURE = """
    from torch_s3dcp import get_reader
    from torch_s3dcp.exceptions import ReaderRegistryError
    try:
        get_reader({!r})
    except ReaderRegistryError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_plug_in_is_listed_without_being_imported(run_with: Callable[..., str]) -> None:
    code = """
        import sys
        from torch_s3dcp import available_readers, get_reader
        print(*available_readers(), "goodreader" in sys.modules, "badreader" in sys.modules)
        get_reader("sequential"), get_reader("good")
        print("goodreader" in sys.modules, "badreader" in sys.modules)
    """
    known = sorted({*available_readers(), "bad", "good"})
    assert run_with(("goodreader", "badreader"), code).splitlines() == [
        " ".join(known) + " False False",
        "True False",
    ]


@pytest.mark.slow
def test_a_plug_in_loads_a_checkpoint_by_name(run_with: Callable[..., str]) -> None:
    code = """
        import torch, torch.distributed.checkpoint as dcp
        from torch_s3dcp import *
        from torch_s3dcp.transports import MemoryTransport

        transport = MemoryTransport("bucket")
        state = {"a": torch.arange(1000.0), "b": {"c": torch.eye(3)}, "n": 7}
        where = "s3://bucket/run"
        dcp.save(state, storage_writer=S3StorageWriter(where, transport=transport), no_dist=True)
        empty = {"a": torch.zeros(1000), "b": {"c": torch.zeros(3, 3)}, "n": 0}
        reader = S3StorageReader(where, reader_constructor="good", transport=transport)
        dcp.load(empty, storage_reader=reader, no_dist=True)
        same = torch.equal(state["a"], empty["a"]) and torch.equal(state["b"]["c"], empty["b"]["c"])
        name = S3ReaderConstructor.get_reader_type_string(reader.reader_constructor)

        transport.put("bucket", "key", b"0123456789")
        client = S3Client(transport=transport)
        file = client.get_object("bucket", "key", reader_constructor="good")
        file.seek(-4, 2)
        print(same, empty["n"], name, type(file).__module__, file.read())
    """
    assert run_with(("goodreader",), code) == "True 7 good goodreader b'6789'"


@pytest.mark.slow
def test_a_plug_in_that_fails_is_named(run_with: Callable[..., str]) -> None:
    said = run_with(("goodreader", "badreader"), FAILURE.format("bad"))
    assert "'bad'" in said
    assert "badreader 0.0.7" in said
    assert "badreader:BadReader" in said
    assert "a_module_that_nobody_has" in said


@pytest.mark.slow
def test_two_plug_ins_that_claim_one_name_are_named(run_with: Callable[..., str]) -> None:
    # The other readers stay in use.
    code = FAILURE.format("good") + "    get_reader('sequential')"
    said = run_with(("goodreader", "clashing"), code)
    assert "clashing 4.5.6 and distribution goodreader 1.2.3" in said


@pytest.mark.slow
def test_a_built_in_reader_keeps_its_name(run_with: Callable[..., str]) -> None:
    code = """
        import sys, warnings
        from torch_s3dcp import get_reader
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            print(get_reader("sequential").__name__, "usurper" in sys.modules)
        print(*(warning.message for warning in caught))
    """
    first, said = run_with(("usurper",), code).splitlines()
    assert first == "SequentialS3Reader False"
    assert "usurper 7.8.9" in said
    assert "'sequential'" in said


@pytest.mark.slow
def test_a_name_that_a_plug_in_offers_is_taken(run_with: Callable[..., str]) -> None:
    code = """
        from torch_s3dcp import get_reader, register_reader, unregister_reader
        for change in (lambda: register_reader("good", print), lambda: unregister_reader("good")):
            for load in (False, True):
                if load:
                    get_reader("good")
                try:
                    change()
                except ValueError as error:
                    print(error)
    """
    said = run_with(("goodreader",), code).splitlines()
    assert len(said) == 4, said
    assert "taken by distribution goodreader 1.2.3" in said[0]
    assert said[1] == said[0]
    assert said[2:] == ["no reader 'good' was registered in this process"] * 2
