"""Which requests a rule strikes: names of S3, conditions, counting, and a seed that repeats."""

from __future__ import annotations

import pickle
from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_s3dcp.exceptions import ConfigurationError
from torch_s3dcp.testing import FaultRule, RuleBook, S3Request, faults
from torch_s3dcp.testing.fault_rules import request_of

GET = S3Request("GetObject", "bucket", "run/x", start=100, end=200)
CUT = faults.Reset("unseen")

COPY = {"x-amz-copy-source": "bucket/other"}
TARGETS: list[tuple[str, str, dict[str, str], str, str, str]] = [
    ("GET", "/", {}, "ListBuckets", "", ""),
    ("PUT", "/bkt", {}, "CreateBucket", "bkt", ""),
    ("HEAD", "/bkt/", {}, "HeadBucket", "bkt", ""),
    ("GET", "/bkt?list-type=2&prefix=a%2F", {}, "ListObjectsV2", "bkt", ""),
    ("GET", "/bkt?uploads", {}, "ListMultipartUploads", "bkt", ""),
    ("POST", "/bkt?delete", {}, "DeleteObjects", "bkt", ""),
    ("GET", "/bkt/a%20b//c/", {}, "GetObject", "bkt", "a b//c/"),
    ("GET", "/bkt//lead", {}, "GetObject", "bkt", "/lead"),
    ("GET", "/bkt/k?uploadId=u", {}, "ListParts", "bkt", "k"),
    ("HEAD", "/bkt/k", {}, "HeadObject", "bkt", "k"),
    ("PUT", "/bkt/k", {}, "PutObject", "bkt", "k"),
    ("PUT", "/bkt/k", COPY, "CopyObject", "bkt", "k"),
    ("PUT", "/bkt/k?partNumber=3&uploadId=u", {}, "UploadPart", "bkt", "k"),
    ("PUT", "/bkt/k?uploadId=u&partNumber=3", COPY, "UploadPartCopy", "bkt", "k"),
    ("PUT", "/bkt/k?tagging", {}, "PutObjectTagging", "bkt", "k"),
    ("POST", "/bkt/k?uploads", {}, "CreateMultipartUpload", "bkt", "k"),
    ("POST", "/bkt/k?uploadId=u", {}, "CompleteMultipartUpload", "bkt", "k"),
    ("DELETE", "/bkt/k?uploadId=u", {}, "AbortMultipartUpload", "bkt", "k"),
    ("DELETE", "/bkt/k", {}, "DeleteObject", "bkt", "k"),
    ("PATCH", "/bkt/k", {}, "PATCH", "bkt", "k"),
]


@pytest.mark.parametrize(("method", "target", "headers", "operation", "bucket", "key"), TARGETS)
def test_requests_have_the_names_of_s3(
    method: str, target: str, headers: dict[str, str], operation: str, bucket: str, key: str
) -> None:
    found = request_of(method, target, headers)
    assert (found.operation, found.bucket, found.key) == (operation, bucket, key)
    assert found.part == (3 if "partNumber" in target else None)
    assert found.upload_id == ("u" if "uploadId" in target else None)


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [("bytes=5-9", 5, 10), ("bytes=5-", 5, None), ("bytes=-5", None, None), ("", None, None)],
)
def test_ranges_are_half_open(header: str, start: int | None, end: int | None) -> None:
    found = request_of("GET", "/b/k", {"range": header})
    assert (found.start, found.end) == (start, end)


@given(
    asked=st.tuples(st.integers(0, 30), st.integers(1, 30)),
    wanted=st.tuples(st.integers(0, 60), st.integers(1, 30)),
)
def test_touching_is_sharing_a_byte(asked: tuple[int, int], wanted: tuple[int, int]) -> None:
    request = S3Request("GetObject", start=asked[0], end=sum(asked))
    shared = set(range(asked[0], sum(asked))) & set(range(wanted[0], sum(wanted)))
    assert request.touches(wanted[0], sum(wanted)) == bool(shared)


@given(
    request=st.builds(
        S3Request,
        st.sampled_from(["GetObject", "PutObject"]),
        st.just("b"),
        st.text("ab/", max_size=4),
    ),
    operation=st.sampled_from([(), "GetObject", ("PutObject", "GetObject")]),
    key=st.sampled_from([None, "a*", "*/b", "?"]),
)
def test_all_conditions_must_hold(request: S3Request, operation: Any, key: str | None) -> None:
    named = not operation or request.operation == operation or request.operation in operation
    globbed = key is None or fnmatchcase(request.key, key)
    assert FaultRule(CUT, operation, key).matches(request) == (named and globbed)


def test_a_key_may_be_judged_by_a_function() -> None:
    rule = FaultRule(CUT, key=lambda key: len(key) == 5)
    assert rule.matches(GET)
    assert not rule.matches(S3Request("GetObject", "bucket", "longer"))


@given(skip=st.integers(0, 5), count=st.none() | st.integers(0, 5), total=st.integers(0, 15))
def test_so_many_are_skipped_and_so_many_struck(skip: int, count: int | None, total: int) -> None:
    book = RuleBook()
    book.add(FaultRule(CUT, "GetObject", skip=skip, count=count))
    struck = []
    for _ in range(total):
        assert book.decide(S3Request("PutObject")) is None
        struck.append(book.decide(GET) is not None)
    end = total if count is None else skip + count
    assert struck == [skip <= number < end for number in range(total)]


@given(seed=st.integers(), probability=st.floats(0, 1))
def test_a_seed_repeats(seed: int, probability: float) -> None:
    def draws() -> list[float | None]:
        book = RuleBook(seed)
        book.add(FaultRule(CUT, probability=probability))
        strikes = [book.decide(GET) for _ in range(20)]
        return [strike.draw if strike else None for strike in strikes]

    first = draws()
    assert first == draws()
    assert all(draw is None or 0 <= draw < 1 for draw in first)
    if probability in (0, 1):
        assert [draw is None for draw in first] == [not probability] * 20


def test_a_probability_is_about_met() -> None:
    book = RuleBook(seed=1)
    book.add(FaultRule(CUT, probability=0.3))
    struck = sum(book.decide(GET) is not None for _ in range(2000))
    assert 500 < struck < 700


def test_the_first_rule_that_strikes_decides() -> None:
    book = RuleBook()
    first = book.add(FaultRule(CUT, count=1))
    book.add(FaultRule(faults.Delay(1)))
    found = [book.decide(GET) for _ in range(2)]
    assert [strike.fault for strike in found if strike] == [CUT, faults.Delay(1)]
    book.remove(first)
    book.remove(first)
    book.clear()
    assert book.decide(GET) is None


def test_equal_rules_are_removed_one_by_one() -> None:
    book = RuleBook()
    book.add(FaultRule(CUT, count=1))
    book.remove(book.add(FaultRule(CUT, count=1)))
    assert [book.decide(GET) is None for _ in range(2)] == [False, True]


PUT = S3Request("PutObject", method="PUT", size=5)
HEAD = S3Request("HeadObject", method="HEAD")


@pytest.mark.parametrize(
    ("fault", "fitting"),
    [
        (faults.FlipBit("request"), [PUT]),
        (faults.FlipBit("answer"), [GET, PUT]),
        (faults.Reset("upload"), [PUT]),
        (faults.Reset("body"), [GET, PUT]),
        (faults.Reset("answer"), [GET, PUT, HEAD]),
        (faults.WrongRange(), [GET]),
        (faults.IgnoreRange(), [GET]),
        (faults.Trickle(), [GET, PUT]),
    ],
)
def test_a_fault_that_cannot_happen_is_not_counted(
    fault: faults.WireFault, fitting: list[S3Request]
) -> None:
    book = RuleBook()
    book.add(FaultRule(fault, count=3))
    assert [r for r in (GET, PUT, HEAD) if book.decide(r)] == fitting


def test_a_function_may_choose() -> None:
    book = RuleBook()
    book.add(FaultRule(lambda request: CUT if request.start else None, count=1))
    found = [book.decide(request) for request in (PUT, GET, GET)]
    assert [strike is not None for strike in found] == [False, True, False]


@pytest.mark.parametrize("wrong", [{"probability": 1.5}, {"skip": -1}, {"count": -1}])
def test_wrong_numbers_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        FaultRule(CUT, **wrong)


def test_rules_are_values() -> None:
    rule = FaultRule(faults.Reply(503, "SlowDown"), "GetObject", key="*.distcp", count=2)
    assert pickle.loads(pickle.dumps(rule)) == rule
    assert len({rule, pickle.loads(pickle.dumps(rule))}) == 1
