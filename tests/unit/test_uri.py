"""Addresses: taken literally, and refused with words that help."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from torch_s3dcp.exceptions import InvalidURIError
from torch_s3dcp.uri import S3URI, is_uri, order_location, parse_uri

BUCKETS = st.from_regex(r"\A[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]\Z")
# Everything that could tempt a URL parser.
KEYS = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="ab/ ?#%+&=:@é日\n.~\\;", max_size=30),
)
ACCESS_POINT = "arn:aws:s3:eu-west-1:123456789012:accesspoint"


@given(BUCKETS, KEYS)
@example("bucket", "a//b")
@example("bucket", "/a")
@example("bucket", "a b?c#d%20e")
@example("bucket", "s3://other/x")
@example("bucket", "..")
def test_keys_are_taken_literally(bucket: str, key: str) -> None:
    parsed = parse_uri(f"s3://{bucket}/{key}")
    assert parsed.bucket == bucket
    dropped = key[len(parsed.key) :]
    assert key.startswith(parsed.key)
    assert set(dropped) <= {"/"}
    assert not parsed.key.endswith("/")


@given(BUCKETS, KEYS)
def test_parsing_undoes_str(bucket: str, key: str) -> None:
    parsed = parse_uri(f"s3://{bucket}/{key}")
    assert parse_uri(str(parsed)) == parsed
    assert str(parsed).startswith(f"s3://{bucket}")
    assert hash(parse_uri(str(parsed))) == hash(parsed)


@given(BUCKETS, KEYS, st.integers(0, 4))
def test_slashes_at_the_end_name_the_same_place(bucket: str, key: str, slashes: int) -> None:
    address = f"s3://{bucket}/{key}".rstrip("/")
    assert parse_uri(address + "/" * slashes) == parse_uri(address)


@given(BUCKETS, KEYS, st.text(alphabet="abc._é ?#", min_size=1, max_size=10))
def test_join_puts_one_slash_between(bucket: str, key: str, name: str) -> None:
    place = parse_uri(f"s3://{bucket}/{key}")
    below = place.join(name)
    assert below.bucket == bucket
    assert str(below) == f"{place}/{name}"
    assert below.key.removesuffix(name).rstrip("/") == place.key


@pytest.mark.parametrize(
    ("address", "bucket", "key"),
    [
        ("s3://bucket", "bucket", ""),
        ("s3://bucket/", "bucket", ""),
        ("s3://bucket//", "bucket", ""),
        ("s3://bucket//a", "bucket", "/a"),
        ("s3://bucket/a//b/", "bucket", "a//b"),
        ("s3://bucket/run 7/étape", "bucket", "run 7/étape"),
        ("s3://bucket/a?versionId=b#c", "bucket", "a?versionId=b#c"),
        ("s3://bucket/a%2Fb", "bucket", "a%2Fb"),
        ("s3://my.Old_bucket/a", "my.Old_bucket", "a"),
        (f"s3://{ACCESS_POINT}/name", f"{ACCESS_POINT}/name", ""),
        (f"s3://{ACCESS_POINT}/name/a/b", f"{ACCESS_POINT}/name", "a/b"),
        (f"s3://{ACCESS_POINT}:name/a/b/", f"{ACCESS_POINT}:name", "a/b"),
        (
            "s3://arn:aws:s3::123456789012:accesspoint/mfz.mrap/k",
            "arn:aws:s3::123456789012:accesspoint/mfz.mrap",
            "k",
        ),
        (
            "s3://arn:aws-cn:s3-object-lambda:cn-north-1:123456789012:accesspoint/o/k",
            "arn:aws-cn:s3-object-lambda:cn-north-1:123456789012:accesspoint/o",
            "k",
        ),
        (
            "s3://arn:aws:s3-outposts:us-west-2:123456789012:outpost/op-01/accesspoint/n/k/l",
            "arn:aws:s3-outposts:us-west-2:123456789012:outpost/op-01/accesspoint/n",
            "k/l",
        ),
    ],
)
def test_examples(address: str, bucket: str, key: str) -> None:
    assert parse_uri(address) == S3URI(bucket, key)
    assert is_uri(address)
    assert parse_uri(str(parse_uri(address))) == S3URI(bucket, key)


def test_an_object_with_a_path_of_its_own_is_taken() -> None:
    class Address(os.PathLike[str]):
        def __fspath__(self) -> str:
            return "s3://bucket/key"

    assert parse_uri(Address()) == S3URI("bucket", "key")


STRING = "'s3://bucket/prefix'"

BAD = [
    ("s3:/bucket/key", "one slash is missing"),
    ("s3:/", "one slash is missing"),
    ("S3://bucket/key", "lower case"),
    ("https://bucket.s3.amazonaws.com/key", "endpoint_url"),
    ("HTTP://127.0.0.1:8333/bucket", "endpoint_url"),
    ("s3://", "no bucket name"),
    ("s3:///key", "no bucket name"),
    ("s3a://bucket/key", "not an S3 location"),
    ("gs://bucket/key", "not an S3 location"),
    ("bucket/key", "not an S3 location"),
    ("/s3://bucket", "not an S3 location"),
    (" s3://bucket", "not an S3 location"),
    ("", "not an S3 location"),
    ("s3://b ucket/key", "bucket name"),
    ("s3://-bucket/key", "bucket name"),
    ("s3://bücket/key", "bucket name"),
    ("s3://bucket?x=1/key", "bucket name"),
    ("s3://bucket\n/key", "bucket name"),
    ("s3://" + "b" * 256, "bucket name"),
    ("s3://arn:aws:s3:eu-west-1:123456789012:accesspoint", "bucket name"),
    ("s3://arn:aws:s3:::bucket/key", "bucket name"),
    ("s3://arn:aws:iam::123456789012:role/name", "bucket name"),
    ("s3://arn:aws:s3-outposts:us-west-2:123456789012:outpost/op-01", "bucket name"),
    (None, "NoneType"),
    (b"s3://bucket/key", "bytes"),
    (7, "int"),
    (["s3://bucket"], "list"),
    (S3URI("bucket", "key"), "S3URI"),
    (Path("s3://bucket/key"), "Path turns"),
    (PurePosixPath("s3://bucket"), "Path turns"),
    (PureWindowsPath("s3://bucket"), "Path turns"),
]


@pytest.mark.parametrize(("address", "reason"), BAD, ids=lambda value: repr(value)[:40])
def test_bad_addresses_are_refused_with_the_way_out(address: object, reason: str) -> None:
    with pytest.raises(InvalidURIError) as caught:
        parse_uri(address)  # type: ignore[arg-type]
    assert reason in str(caught.value)
    assert STRING in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert not is_uri(address)


@given(st.one_of(st.text(max_size=30), st.text(alphabet="s3:/ab.-?#@", max_size=20)))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        parsed = parse_uri(text)
    except InvalidURIError:
        assert not is_uri(text)
    else:
        assert is_uri(text)
        assert text.startswith(str(parsed))


@pytest.mark.parametrize(
    "address",
    [
        "s3://AKIAEXAMPLE:hush-hush@bucket/key",
        "https://user:hush-hush@host/bucket",
        "https://bucket.s3.amazonaws.com/key?X-Amz-Signature=hush-hush",
        "s3a://AKIAEXAMPLE:hush/hush-hush@bucket",
        "s3://AKIAEXAMPLE:hush/hush-hush@bucket/key",
    ],
)
def test_a_secret_in_an_address_is_not_repeated(address: str) -> None:
    with pytest.raises(InvalidURIError) as caught:
        parse_uri(address)
    assert "hush-hush" not in str(caught.value)
    assert "hush-hush" not in repr(caught.value)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("s3://bucket/a", None, ("s3://bucket/a", None)),
        ("s3://bucket/a", "eu-west-1", ("s3://bucket/a", "eu-west-1")),
        ("eu-west-1", "s3://bucket/a", ("s3://bucket/a", "eu-west-1")),
        ("s3://bucket/a", "", ("s3://bucket/a", None)),
        ("", "s3://bucket/a", ("s3://bucket/a", None)),
    ],
)
def test_path_and_region_in_both_orders(
    first: str, second: str | None, expected: tuple[str, str | None]
) -> None:
    assert order_location(first, second) == expected


@given(BUCKETS, KEYS, st.sampled_from(["us-east-1", "eu-central-2", "local", "garage"]))
def test_both_orders_mean_the_same(bucket: str, key: str, region: str) -> None:
    address = f"s3://{bucket}/{key}"
    assert order_location(address, region) == order_location(region, address) == (address, region)


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ("eu-west-1", None, "'eu-west-1' is not an S3 location"),
        ("eu-west-1", "us-east-1", "'eu-west-1' is not an S3 location"),
        ("eu-west-1", "s3:/bucket/a", "one slash is missing"),
        ("eu-west-1", Path("s3://bucket/a"), "Path turns"),
        (Path("s3://bucket/a"), "eu-west-1", "Path turns"),
        ("eu-west-1", "https://host/bucket", "endpoint_url"),
        ("s3:/bucket/a", "eu-west-1", "one slash is missing"),
        ("s3://bucket/a", "s3://bucket/b", "region must be .* not 's3://bucket/b'"),
        ("s3://bucket/a", Path("eu-west-1"), "region must be"),
        ("s3://bucket/a", 3, "region must be"),
        (None, None, "NoneType"),
    ],
)
def test_what_is_wrong_is_blamed_in_both_orders(first: object, second: object, reason: str) -> None:
    with pytest.raises(InvalidURIError, match=reason):
        parse_uri(order_location(first, second)[0])  # type: ignore[arg-type]
