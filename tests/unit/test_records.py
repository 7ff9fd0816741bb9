"""Records of archives, compared with ``zipfile``."""

from __future__ import annotations

import io
import struct
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_s3dcp.records import RecordFile, read_records


def zipped(records: dict[str, bytes], limit: int) -> bytes:
    """An archive in which numbers above ``limit`` are written as those above 4 GiB are."""
    made = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zipfile, "ZIP64_LIMIT", limit)
        with zipfile.ZipFile(made, "w") as archive:
            for name, content in records.items():
                archive.writestr(f"archive/{name}", content)
    return made.getvalue()


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
