"""Settings: the reference's defaults, refused where they are set, and silent about secrets."""

from __future__ import annotations

import base64
import copy
import dataclasses
import logging
import math
import pickle
import traceback
from typing import Any

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.canary import CUSTOMER_KEY

from torch_s3dcp import S3ClientConfig, S3Credentials
from torch_s3dcp.exceptions import ConfigurationError
from torch_s3dcp.testing import SECRET_MARK, TOKEN_MARK

MIB = 2**20
# No credential: words that are easy to find again.
KEY_ID, SECRET, TOKEN = "AKIA-made-up", SECRET_MARK + "Hush", TOKEN_MARK + "Hush"


def credentials() -> S3Credentials:
    return S3Credentials(KEY_ID, SECRET, TOKEN)


def test_the_defaults_are_those_of_the_reference() -> None:
    reference = {
        "throughput_target_gbps": 10.0,
        "part_size": None,  # the one that differs: by the object's size
        "unsigned": False,
        "force_path_style": False,
        "max_attempts": 10,
        "profile": None,
        "requester_pays": False,
    }
    config = S3ClientConfig()
    assert {name: getattr(config, name) for name in reference} == reference
    # Their order too: somebody may pass them by position.
    assert [f.name for f in dataclasses.fields(config)][: len(reference)] == list(reference)


def test_what_goes_beyond_the_reference_is_off_until_asked_for() -> None:
    config = S3ClientConfig()
    for name in (
        "endpoint_url",
        "credentials",
        "session",
        "client",
        "storage_class",
        "server_side_encryption",
        "sse_kms_key_id",
        "sse_customer_key",
        "tags",
        "acl",
        "checksum_algorithm",
    ):
        assert getattr(config, name) is None, name


BAD: list[tuple[str, Any]] = [
    *(("part_size", value) for value in (0, -1, 5 * MIB - 1, 5 * 1024 * MIB + 1, 8e6, "8", True)),
    *(("part_size", value) for value in (math.nan, math.inf)),
    *(("max_attempts", value) for value in (0, -3, 1001, 2.0, "3", None, True)),
    *(("max_concurrency", value) for value in (0, -1, 10_001, 1.5, "16", None, True)),
    *(("memory_budget", value) for value in (0, -1, 16 * MIB - 1, 1e9, "1G", None, True)),
    *(("throughput_target_gbps", value) for value in (0, -1.0, math.nan, "10", None, True)),
    *(("connect_timeout", value) for value in (0, -1, math.nan, "10", None, False)),
    *(("read_timeout", value) for value in (0, -0.5, math.nan, "60", None, True)),
    *(("unsigned", value) for value in ("no", 1, None)),
    *(("force_path_style", value) for value in ("yes", 0, None)),
    *(("requester_pays", value) for value in ("requester", 1, None)),
    *(("profile", value) for value in (5, b"me")),
    *(("endpoint_url", value) for value in ("", "localhost:9000", "s3://bucket", 9000)),
    ("storage_class", 5),
    *(("checksum_algorithm", value) for value in ("MD5", "crc32", "", 5, ["CRC32"])),
    *(("server_side_encryption", value) for value in ("aes256", "aws", "", True, ["AES256"])),
    *(("sse_kms_key_id", value) for value in ("key", 5)),
    *(("sse_customer_key", value) for value in (b"", CUSTOMER_KEY[1:], CUSTOMER_KEY + b".")),
    *(("sse_customer_key", value) for value in (SECRET, bytearray(CUSTOMER_KEY), 32, True)),
    *(("acl", value) for value in ("", "PRIVATE", "log-delivery-write", 5, ["private"])),
    *(("credentials", value) for value in ((KEY_ID, SECRET), {"secret": SECRET}, SECRET)),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=repr)
def test_a_bad_value_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"\b{name}\b") as caught:
        S3ClientConfig(**{name: value})
    assert isinstance(caught.value, ValueError)
    assert SECRET not in str(caught.value)
    with pytest.raises(ConfigurationError, match=rf"\b{name}\b"):
        S3ClientConfig().replace(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("part_size", 5 * MIB),
        ("part_size", 5 * 1024 * MIB),
        ("max_attempts", 1),
        ("max_concurrency", 1),
        ("memory_budget", 16 * MIB),
        ("connect_timeout", 1),
        ("endpoint_url", "http://127.0.0.1:8333"),
        ("endpoint_url", "https://s3.example.org"),
        ("checksum_algorithm", "CRC64NVME"),
        ("server_side_encryption", "aws:kms:dsse"),
        ("storage_class", "A_CLASS_OF_TOMORROW"),
        ("sse_customer_key", CUSTOMER_KEY),
        ("sse_customer_key", bytes(32)),
        *(("acl", value) for value in ("private", "public-read", "public-read-write")),
        *(("acl", value) for value in ("authenticated-read", "aws-exec-read")),
        *(("acl", value) for value in ("bucket-owner-read", "bucket-owner-full-control")),
    ],
)
def test_the_limits_themselves_are_fine(name: str, value: Any) -> None:
    assert getattr(S3ClientConfig(**{name: value}), name) == value


@pytest.mark.parametrize("mode", [None, "AES256"])
def test_a_kms_key_needs_a_kms_mode(mode: str | None) -> None:
    with pytest.raises(ConfigurationError, match=r"sse_kms_key_id.*aws:kms"):
        S3ClientConfig(server_side_encryption=mode, sse_kms_key_id="key")
    config = S3ClientConfig(server_side_encryption="aws:kms", sse_kms_key_id="key")
    assert config.sse_kms_key_id == "key"


@pytest.mark.parametrize(
    ("name", "value"),
    [("server_side_encryption", "AES256"), ("sse_kms_key_id", "key"), ("sse_kms_key_id", "")],
)
def test_a_customers_key_and_another_key_contradict_each_other(name: str, value: str) -> None:
    others: dict[str, Any] = {name: value}
    with pytest.raises(ConfigurationError, match=rf"sse_customer_key and {name} contradict"):
        S3ClientConfig(sse_customer_key=CUSTOMER_KEY, **others)


def test_a_customers_key_needs_https() -> None:
    secure = S3ClientConfig(sse_customer_key=CUSTOMER_KEY, endpoint_url="https://127.0.0.1")
    with pytest.raises(ConfigurationError, match=r"sse_customer_key.*https.*endpoint_url.*http"):
        secure.replace(endpoint_url="http://127.0.0.1")


SOURCES = {
    "unsigned": True,
    "credentials": S3Credentials(KEY_ID, SECRET),
    "profile": "me",
    "session": boto3.Session(region_name="us-east-1"),
    "client": object(),
}


@pytest.mark.parametrize("first", SOURCES)
@pytest.mark.parametrize("second", SOURCES)
def test_two_sources_of_credentials_contradict_each_other(first: str, second: str) -> None:
    given_both: Any = {name: SOURCES[name] for name in (first, second)}
    if first == second:
        assert getattr(S3ClientConfig(**given_both), first) is SOURCES[first]
        return
    with pytest.raises(ConfigurationError, match="contradict") as caught:
        S3ClientConfig(**given_both)
    assert first in str(caught.value)
    assert second in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [("part_size", 1), ("credentials", None)])
def test_settings_cannot_be_changed_in_place(name: str, value: Any) -> None:
    config = S3ClientConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, name, value)
    with pytest.raises(dataclasses.FrozenInstanceError):
        credentials().secret_access_key = "other"  # type: ignore[misc]


VALUES = st.fixed_dictionaries(
    {},
    optional={
        "throughput_target_gbps": st.floats(0.1, 1000),
        "part_size": st.integers(5 * MIB, 5 * 1024 * MIB),
        "max_attempts": st.integers(1, 1000),
        "force_path_style": st.booleans(),
        "requester_pays": st.booleans(),
        "profile": st.text(min_size=1, max_size=5),
        "endpoint_url": st.sampled_from(["http://127.0.0.1:1", "https://x"]),
        "max_concurrency": st.integers(1, 10_000),
        "memory_budget": st.integers(16 * MIB, 2**50),
        "storage_class": st.sampled_from(["STANDARD", "STANDARD_IA"]),
        "server_side_encryption": st.sampled_from(["AES256", "aws:kms"]),
        "checksum_algorithm": st.sampled_from(["CRC32", "SHA256"]),
        "read_timeout": st.floats(0.1, 100),
        "tags": st.dictionaries(st.sampled_from("abc"), st.text(max_size=3)),
        "acl": st.sampled_from(["private", "bucket-owner-read"]),
    },
)


@given(VALUES)
def test_a_configuration_is_a_value(values: dict[str, Any]) -> None:
    config = S3ClientConfig(**values)
    for twin in (
        S3ClientConfig(**values),
        S3ClientConfig().replace(**values),
        pickle.loads(pickle.dumps(config)),
        copy.copy(config),
        copy.deepcopy(config),
    ):
        assert twin == config
        assert hash(twin) == hash(config)
    assert all(getattr(config, name) == value for name, value in values.items())
    assert config.replace(part_size=7 * MIB).part_size == 7 * MIB


@given(VALUES, VALUES)
def test_replace_changes_just_what_it_names(old: dict[str, Any], new: dict[str, Any]) -> None:
    config = S3ClientConfig(**old)
    assert config.replace(**new) == S3ClientConfig(**{**old, **new})
    assert config == S3ClientConfig(**old)


def test_settings_tell_configurations_apart() -> None:
    assert S3ClientConfig(max_attempts=3) != S3ClientConfig(max_attempts=4)
    assert S3ClientConfig(credentials=credentials()) != S3ClientConfig()
    session = SOURCES["session"]
    assert len({S3ClientConfig(session=session), S3ClientConfig(session=session)}) == 1
    assert len({S3ClientConfig(credentials=credentials()) for _ in range(2)}) == 1
    keyed = S3ClientConfig(sse_customer_key=CUSTOMER_KEY)
    assert keyed == S3ClientConfig(sse_customer_key=CUSTOMER_KEY)
    assert len({keyed, S3ClientConfig(), S3ClientConfig(sse_customer_key=bytes(32))}) == 3


@pytest.mark.parametrize("name", ["session", "client"])
def test_pickling_a_live_connection_is_refused_with_the_way_out(name: str) -> None:
    config = S3ClientConfig(**{name: SOURCES[name]})  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=rf"{name}=.*another process.*profile"):
        pickle.dumps(config)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_keys_is_refused_with_the_way_out(protocol: int) -> None:
    for value in (credentials(), S3ClientConfig(credentials=credentials())):
        with pytest.raises(ConfigurationError, match=r"not sent.*AWS_ACCESS_KEY_ID.*profile"):
            pickle.dumps(value, protocol)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_a_customers_key_is_refused_with_the_way_out(protocol: int) -> None:
    config = S3ClientConfig(sse_customer_key=CUSTOMER_KEY)
    with pytest.raises(ConfigurationError, match=r"not sent to another process.*aws:kms"):
        pickle.dumps(config, protocol)


@pytest.mark.parametrize(
    ("key_id", "secret"), [("", SECRET), (KEY_ID, ""), (None, SECRET), (KEY_ID, None), (1, SECRET)]
)
def test_half_a_pair_of_keys_is_refused(key_id: Any, secret: Any) -> None:
    with pytest.raises(ConfigurationError, match="both") as caught:
        S3Credentials(key_id, secret)
    assert SECRET not in str(caught.value)


def test_no_secret_is_ever_shown(caplog: pytest.LogCaptureFixture) -> None:
    keys = credentials()
    config = S3ClientConfig(credentials=keys, sse_customer_key=CUSTOMER_KEY)
    caplog.set_level(logging.DEBUG)
    logging.getLogger("test").debug("%s %r %s %r", keys, keys, config, config)
    shown = [caplog.text, str(keys), repr(keys), str(config), repr(config), f"{config}"]
    for attempt in (
        lambda: pickle.dumps(config),
        lambda: config.replace(profile="me"),
        lambda: config.replace(part_size=1),
        lambda: config.replace(credentials=(KEY_ID, SECRET, TOKEN)),
        lambda: config.replace(sse_customer_key=CUSTOMER_KEY + b"."),
        lambda: config.replace(sse_customer_key=CUSTOMER_KEY.decode()),
        lambda: config.replace(server_side_encryption="AES256"),
        lambda: config.replace(endpoint_url="http://127.0.0.1"),
        lambda: pickle.dumps(config.replace(credentials=None)),
    ):
        try:
            attempt()
        except ConfigurationError as error:
            shown += [str(error), repr(error), *traceback.format_exception(error)]
            shown.append(pickle.dumps(error).decode("latin-1"))
    assert len(shown) > 20
    for text in shown:
        assert SECRET not in text
        assert TOKEN not in text
        assert KEY_ID not in text
        assert CUSTOMER_KEY.decode() not in text
        assert base64.b64encode(CUSTOMER_KEY).decode() not in text
