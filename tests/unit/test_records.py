"""Records of archives, compared with ``zipfile``."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_s3dcp.records import RecordFile, archive_of, read_records


def zipped(records: dict[str, bytes], limit: int) -> bytes:
    """An archive in which numbers above ``limit`` are written as those above 4 GiB are."""
    made = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zipfile, "ZIP64_LIMIT", limit)
        with zipfile.ZipFile(made, "w") as archive:
            for name, content in records.items():
                archive.writestr(f"archive/{name}", content)
    return made.getvalue()


def test_the_number_of_a_disk_may_follow() -> None:
    data = zipped({"one": b"1" * 50}, 10)
    entry = data.index(b"PK\x01\x02")
    # The field of the entry's sizes: kind, length, two numbers. Four bytes more, and zeros.
    field = struct.pack("<2H2Q", 1, 16, 50, 50)
    begin = data.index(field, entry)
    longer = struct.pack("<2H2QI", 1, 20, 50, 50, 0)
    name, extra, comment = struct.unpack_from("<3H", data, entry + 28)
    grown = bytearray(data[:begin] + longer + data[begin + len(field) :])
    struct.pack_into("<3H", grown, entry + 28, name, extra + 4, comment)
    for mark, place, form in ((b"PK\x06\x06", 40, "<Q"), (b"PK\x05\x06", 12, "<I")):
        at = grown.find(mark)
        if at >= 0:
            (size,) = struct.unpack_from(form, grown, at + place)
            if size < 2**32 - 1:
                struct.pack_into(form, grown, at + place, size + 4)
    locator = grown.find(b"PK\x06\x07")
    if locator >= 0:
        struct.pack_into("<Q", grown, locator + 8, grown.find(b"PK\x06\x06"))
    with zipfile.ZipFile(io.BytesIO(bytes(grown))) as archive:
        assert archive.read("archive/one") == b"1" * 50
    assert bytes(read_records(memoryview(bytes(grown)))["one"]) == b"1" * 50


@given(data=st.binary(max_size=200))
def test_a_large_pickle_is_put_into_an_archive_too(data: bytes) -> None:
    for made in (archive_of(data), archive_of(data, largest=0)):
        with zipfile.ZipFile(io.BytesIO(made)) as archive:
            assert archive.testzip() is None
        assert bytes(read_records(memoryview(made))["data.pkl"]) == data
    value = {"one": [1, 2.5, "text"]}
    large = archive_of(pickle.dumps(value, 2), largest=0)
    assert torch.load(io.BytesIO(large), weights_only=True) == value


RECORDS = st.dictionaries(st.text("abc/", min_size=1, max_size=5), st.binary(max_size=40))


@given(records=RECORDS, limit=st.sampled_from([0, 10, 100, 2**31]))
def test_records_are_what_went_in(records: dict[str, bytes], limit: int) -> None:
    data = zipped(records, limit)
    found = {name: bytes(content) for name, content in read_records(memoryview(data)).items()}
    assert found == records
    file = RecordFile(io.BytesIO(data))
    assert {name: bytes(file[name]) for name in records} == records


@given(records=RECORDS, flips=st.lists(st.tuples(st.integers(0), st.integers(1, 255)), min_size=1))
def test_damaged_directories_are_refused_or_read_right(
    records: dict[str, bytes], flips: list[tuple[int, int]]
) -> None:
    data = bytearray(zipped(records, 10))
    for place, change in flips:
        data[place % len(data)] ^= change
    try:
        found = read_records(memoryview(bytes(data)))
    except (ValueError, struct.error):
        return
    assert sum(map(len, found.values())) <= len(data)
