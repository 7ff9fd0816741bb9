"""Every reader that the registry knows, and the example plug-in, against the suite."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest

from torch_s3dcp import (
    DCPOptimizedConstructor,
    RangedS3Reader,
    S3ReaderConstructor,
    SequentialS3Reader,
    available_readers,
    get_reader,
)
from torch_s3dcp.ranges import ItemRange
from torch_s3dcp.testing.reader_suite import BLOB, BUCKET, KEY, ReaderSuite, stored

SETTINGS: dict[str, Any] = {
    **{
        f"range_based, buffer of {size} bytes": S3ReaderConstructor.range_based(size)
        for size in (0, 1, 7, 8 * 1024 * 1024)
    },
    **{
        f"dcp_optimized, gap of {gap} bytes": DCPOptimizedConstructor(gap)
        for gap in (0, 1, math.inf)
    },
}


def _suite(name: str, constructor: Any) -> type[ReaderSuite]:
    body = {"constructor": staticmethod(constructor), "__doc__": name}
    title = "Test" + "".join(word.capitalize() for word in name.replace(",", "").split())
    return type(title, (ReaderSuite,), body)


# pytest collects classes by their names in the module.
for _name in available_readers():
    _class = _suite(_name, get_reader(_name))
    globals()[_class.__name__] = _class
for _name, _constructor in SETTINGS.items():
    _class = _suite(_name, _constructor)
    globals()[_class.__name__] = _class


class TestByName(ReaderSuite):
    """A registered name does as well as a constructor."""

    constructor = "sequential"


class TestPlugIn(ReaderSuite):
    """The example of a third party's reader."""

    constructor: ClassVar[Any] = None

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _import_plug_in(cls) -> None:
        """The plug-in is not installed here: only its folder is needed."""
        folder = Path(__file__).parents[1] / "plugins" / "goodreader"
        sys.path.insert(0, str(folder))
        try:
            from goodreader import GoodReader
        finally:
            sys.path.remove(str(folder))
        cls.constructor = GoodReader


class _Zeros(SequentialS3Reader):
    """Wrong: fills up what is missing."""

    def fill(self, position: int, target: memoryview) -> int:
        try:
            return super().fill(position, target)
        except EOFError:
            return len(target)


class _Shifted(SequentialS3Reader):
    """Wrong: one byte off, beyond the first."""

    def fill(self, position: int, target: memoryview) -> int:
        return super().fill(position + 1 if position else 0, target)


class _Leaky(RangedS3Reader):
    """Wrong: leaves position and streams as they are when it is closed."""

    @property
    def closed(self) -> bool:
        return False


class _Shared(RangedS3Reader):
    """Wrong: all readers share one buffer."""

    known: ClassVar[dict[int, bytes]] = {}

    def fill(self, position: int, target: memoryview) -> int:
        if position not in self.known or len(self.known[position]) != len(target):
            count = super().fill(position, target)
            self.known[position] = bytes(target[:count])
        target[: len(self.known[position])] = self.known[position]
        return len(self.known[position])


@pytest.mark.parametrize("name", available_readers())
@pytest.mark.parametrize("after", [0, 13, 300])
def test_ours_notice_a_stream_that_ends_early(name: str, after: int) -> None:
    """More than the contract asks for: streams promise not to."""
    info = stored(BLOB).head(BUCKET, KEY)

    class Short(io.BytesIO):
        def __init__(self, start: int | None = None, end: int | None = None) -> None:
            super().__init__(BLOB[start or 0 : end][:after])
            self.info = info

    class Suite(ReaderSuite):
        constructor = name

    constructor: Any = Suite().constructor_for([ItemRange(0, 600)])
    with constructor(BUCKET, KEY, lambda: info, Short) as reader, pytest.raises(EOFError):
        reader.readinto(bytearray(600))


@pytest.mark.parametrize(
    ("reader", "check"),
    [
        (_Zeros, lambda s: s.test_a_body_that_ends_early_is_an_error(13)),
        (_Shifted, lambda s: s.test_items_may_be_left_out()),
        (_Shifted, lambda s: s.test_wrong_seeks_move_nothing()),
        (_Leaky, lambda s: s.test_close_is_final_and_may_be_repeated()),
        (_Shared, lambda s: s.test_readers_of_one_constructor_do_not_disturb_one_another()),
    ],
)
def test_the_suite_finds(reader: Any, check: Callable[[ReaderSuite], None]) -> None:
    suite = _suite("broken", reader)()
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(suite)


def test_the_suite_tells_an_aware_constructor_its_ranges() -> None:
    suite = _suite("aware", DCPOptimizedConstructor(0))()
    assert not suite.reads_freely()
    with suite.open(b"0123456789", [ItemRange(2, 4)]) as reader:
        reader.seek(2)
        assert reader.read(2) == b"23"


def test_the_suite_takes_a_partial_from_a_class_body() -> None:
    class Suite(ReaderSuite):
        constructor = partial(RangedS3Reader, buffer_size=3)

    assert Suite().reads_freely()
    with Suite().open(b"0123456789") as reader:
        assert reader.read() == b"0123456789"
