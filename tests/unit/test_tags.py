"""Tags: S3's limits, and a value that nobody can change."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_s3dcp import S3ClientConfig
from torch_s3dcp.exceptions import ConfigurationError

CLEF = "\N{MUSICAL SYMBOL G CLEF}"  # two characters to S3
TAGS = st.dictionaries(
    st.text(min_size=1, max_size=64).filter(lambda key: not key.lower().startswith("aws:")),
    st.text(max_size=128),
    max_size=10,
)


@given(TAGS)
def test_tags_are_a_value(tags: dict[str, str]) -> None:
    config = S3ClientConfig(tags=tags)
    backwards = S3ClientConfig(tags=dict(reversed(tags.items())))
    assert config.tags == tags
    assert list(config.tags or {}) == list(tags)
    for twin in (backwards, pickle.loads(pickle.dumps(config)), config.replace(part_size=None)):
        assert twin == config
        assert hash(twin) == hash(config)
    assert repr(tags) in repr(config)


@given(TAGS, TAGS)
def test_other_tags_are_another_configuration(one: dict[str, str], two: dict[str, str]) -> None:
    assert (S3ClientConfig(tags=one) == S3ClientConfig(tags=two)) is (one == two)
    assert S3ClientConfig(tags=one) != S3ClientConfig()


def test_the_callers_mapping_is_copied() -> None:
    mine = {"run": "1"}
    config = S3ClientConfig(tags=mine)
    mine["run"] = "2"
    mine["more"] = ""
    assert config.tags == {"run": "1"}
    with pytest.raises(TypeError):
        config.tags["run"] = "3"  # type: ignore[index]


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {f"key {n}": "" for n in range(10)},
        {"k" * 128: "v" * 256},
        {CLEF * 64: CLEF * 128},
        {"laws:": "aws:"},
    ],
    ids=["none", "ten", "long", "two characters each", "aws elsewhere"],
)
def test_the_limits_themselves_are_fine(tags: dict[str, str]) -> None:
    assert S3ClientConfig(tags=tags).tags == tags


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({f"key {n}": "" for n in range(11)}, "at most 10.*got 11"),
        ({"k" * 129: ""}, "key has at most 128 .*got 129"),
        ({CLEF * 65: ""}, "key has at most 128 .*got 130"),
        ({"k": "v" * 257}, "value has at most 256 .*got 257"),
        ({"": "v"}, "empty"),
        ({"aws:owner": "me"}, "aws:"),
        ({"AWS:owner": "me"}, "aws:"),
        ({"k": "\ud800"}, "Unicode"),
        ({"k": 1}, "value must be a str, not a int"),
        ({1: "v"}, "key must be a str, not a int"),
        ({"k": None}, "value must be a str"),
        ("k=v", "must be a Mapping, not a str"),
        ([("k", "v")], "must be a Mapping, not a list"),
    ],
)
def test_what_s3_would_refuse_is_refused_at_once(tags: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"tags\b.*{said}"):
        S3ClientConfig(tags=tags)
