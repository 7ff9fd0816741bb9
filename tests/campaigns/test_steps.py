"""Which sets of a save's steps a crash may leave: compared with all sets, one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaigns._steps import Bucket, ReplayError, Step, contests, crash_points, needs, steps_of
from torch_s3dcp.testing import Mutation

KINDS = [("put", None), ("delete", None), ("create", "u"), ("part", "u"), ("complete", "u")]


@st.composite
def some_steps(draw: st.DrawFn) -> list[Step]:
    steps = []
    for number in range(draw(st.integers(0, 8))):
        kind, upload = draw(st.sampled_from(KINDS))
        key = "up" if upload else draw(st.sampled_from(["a", "b", "run/.metadata"]))
        length = draw(st.sampled_from([0.5, 1.5, 3.0]))
        steps.append(Step(kind, key, number, number + length, upload, draw(st.integers(1, 2))))
    return steps


@given(some_steps())
def test_a_crash_leaves_any_set_that_holds_what_its_steps_need(steps: list[Step]) -> None:
    before = needs(steps)
    whole = {
        done
        for done in range(1 << len(steps))
        if all(before[n] & done == before[n] for n in range(len(steps)) if done >> n & 1)
    }
    assert crash_points(steps, most=1000, seed=1) == (whole, True)


@given(some_steps(), st.integers(0, 5))
def test_of_very_many_some_are_chosen(steps: list[Step], seed: int) -> None:
    whole, _ = crash_points(steps, most=1000, seed=seed)
    most = len(whole) // 2
    some, complete = crash_points(steps, most, seed)
    assert some <= whole
    assert not complete
    assert len(some) >= most


def test_what_needs_what() -> None:
    steps = [
        Step("create", "a", 0, 1, "u"),
        Step("part", "a", 1, 2, "u", 1),
        Step("part", "a", 1, 2, "u", 2),
        Step("complete", "a", 2, 3, "u"),
        Step("put", "b", 3, 4),
        Step("put", "run/.metadata", 5, 6),
        Step("delete", "old", 6, 7),
        Step("delete", "older", 5.5, 7),  # sent before the commit was answered
    ]
    assert needs(steps) == [0, 0b1, 0b1, 0b111, 0, 0b11111, 0b100000, 0]


def test_writers_of_one_key_at_one_time() -> None:
    one, other = Step("put", "a", 0, 2), Step("complete", "a", 1, 3, "u")
    assert contests([one, other, Step("put", "a", 4, 5), Step("put", "b", 0, 9)]) == [(one, other)]


def test_a_bucket_does_what_a_server_would() -> None:
    bucket = Bucket()
    for step in (
        Step("create", "a", 0, 0, "u"),
        Step("part", "a", 0, 0, "u", 2, b"CD"),
        Step("part", "a", 0, 0, "u", 1, b"ab"),
        Step("complete", "a", 0, 0, "u", parts=(1, 2)),
        Step("create", "b", 0, 0, "v"),
        Step("copy", "b", 0, 0, "v", 1, source=("a", 1, 3)),
    ):
        bucket.do(step)
    assert bucket.objects == {"a": b"abCD"}
    earlier = bucket.copy()
    bucket.do(Step("complete", "b", 0, 0, "v", parts=(1,)))
    bucket.do(Step("delete", "a", 0, 0))
    assert bucket.objects == {"b": b"bC"}
    assert earlier.objects == {"a": b"abCD"}


@pytest.mark.parametrize(
    "step",
    [
        Step("put", "a", 0, 0, conditions={"if-none-match": "*"}),
        Step("put", "a", 0, 0, conditions={"if-match": '"another"'}),
        Step("put", "b", 0, 0, conditions={"if-match": '"another"'}),
        Step("part", "a", 0, 0, "u", 1),
    ],
)
def test_a_bucket_refuses_what_a_server_would(step: Step) -> None:
    with pytest.raises(ReplayError):
        Bucket({"a": b"there"}).do(step)


def test_requests_become_steps() -> None:
    delete = b"<Delete><Object><Key>a</Key></Object><Object><Key>b</Key></Object></Delete>"
    finish = b"<Part><PartNumber>1</PartNumber></Part><Part><PartNumber>2</PartNumber></Part>"
    copied = {"x-amz-copy-source": "bucket/a%20b", "x-amz-copy-source-range": "bytes=5-9"}
    marked = {"x-amz-meta-mark": "m", "if-match": '"e"'}

    def sent(operation: str, body: bytes = b"", **about: object) -> Mutation:
        headers = about.get("headers", {})
        return Mutation(0, operation, "bucket", "k", "u", 3, body, {}, headers, begin=1, end=2)  # type: ignore[arg-type]

    steps = steps_of(
        [
            sent("DeleteObjects", delete),
            sent("CompleteMultipartUpload", finish),
            sent("UploadPartCopy", headers=copied),
            sent("PutObject", b"x", headers=marked),
        ]
    )
    assert [step.kind for step in steps] == ["delete", "delete", "complete", "copy", "put"]
    assert [step.key for step in steps[:2]] == ["a", "b"]
    assert steps[2].parts == (1, 2)
    assert (steps[3].source, steps[3].part) == (("a b", 5, 10), 3)
    assert steps[4].metadata == {"mark": "m"}
