"""Every error crosses processes whole: DCP pickles one rank's error for all the others."""

from __future__ import annotations

import builtins
import copy
import inspect
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import torch_s3dcp
from torch_s3dcp import exceptions
from torch_s3dcp.exceptions import S3DCPError

CLASSES = sorted(
    (
        value
        for value in vars(exceptions).values()
        if isinstance(value, type) and issubclass(value, BaseException)
    ),
    key=lambda cls: cls.__name__,
)
CONTEXT: dict[str, Any] = {
    "bucket": "bucket",
    "key": "run/é ?#.distcp",
    "byte_range": (3, 9),
    "tensor": "model.layer.weight",
    "operation": "GetObject",
    "request_id": "4442587FB7D0A2F9",
    "attempts": 7,
}
CROSSINGS: dict[str, Callable[[Any], Any]] = {
    **{
        f"pickle {n}": lambda error, n=n: pickle.loads(pickle.dumps(error, n))
        for n in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}

every_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


def documented_tree() -> dict[str, tuple[list[str], str]]:
    """Name to its bases and the line's remark, from the drawing in the module's docstring."""
    doc = exceptions.__doc__ or ""
    tree: dict[str, tuple[list[str], str]] = {}
    path: list[str] = []
    for line in doc.splitlines():
        match = re.fullmatch(r" {4}([│├└─ ]*)([A-Z]\w+)(?: \((\w+)\))?(?: +(.+))?", line)
        if match is None:
            continue
        depth = len(match[1]) // 4
        parent = path[depth - 1 : depth]
        path[depth:] = [match[2]]
        tree[match[2]] = (parent + ([match[3]] if match[3] else []), match[4] or "")
    return tree


TREE = documented_tree()


def test_there_are_classes_and_a_tree() -> None:
    assert len(CLASSES) > 20
    assert len(TREE) > 20


def test_the_tree_shows_every_class_and_no_other() -> None:
    assert sorted(TREE) == [cls.__name__ for cls in CLASSES]


@every_class
def test_the_bases_are_the_documented_ones(cls: type[S3DCPError]) -> None:
    bases, _ = TREE[cls.__name__]
    if cls is S3DCPError:
        assert bases == []
        assert cls.__bases__ == (Exception,)
        return
    expected = [getattr(exceptions, name, None) or getattr(builtins, name) for name in bases]
    assert list(cls.__bases__) == expected
    assert issubclass(cls, S3DCPError)


@every_class
def test_each_has_words_of_its_own(cls: type[S3DCPError]) -> None:
    assert cls.__dict__.get("__doc__"), "no docstring"


@pytest.mark.parametrize("cross", CROSSINGS.values(), ids=CROSSINGS)
@pytest.mark.parametrize("context", [CONTEXT, {}], ids=["context", "bare"])
@every_class
def test_each_survives(
    cls: type[S3DCPError], context: dict[str, Any], cross: Callable[[Any], Any]
) -> None:
    error = cls("what happened", **context)
    twin = cross(error)
    assert type(twin) is cls
    assert twin is not error
    assert twin.message == "what happened"
    assert twin.context == context
    assert twin.args == error.args
    assert str(twin) == str(error)
    assert repr(twin) == repr(error)
    for name, value in CONTEXT.items():
        assert getattr(twin, name) == (value if context else None)


@every_class
def test_the_text_says_what_and_where(cls: type[S3DCPError]) -> None:
    text = str(cls("what happened", **CONTEXT))
    assert text.startswith("what happened")
    for part in (
        "s3://bucket/run/é ?#.distcp",
        "[3, 9)",
        "'model.layer.weight'",
        "GetObject",
        "4442587FB7D0A2F9",
        "7 attempts",
    ):
        assert part in text
    assert str(cls("what happened")) == "what happened"


@every_class
def test_each_is_caught_as_its_builtin(cls: type[S3DCPError]) -> None:
    bases, _ = TREE[cls.__name__]
    for name in bases:
        builtin = getattr(builtins, name, None)
        if builtin is not None:
            with pytest.raises(builtin, match="what happened"):
                raise cls("what happened", **CONTEXT)


@every_class
def test_locate_adds_and_never_overrides(cls: type[S3DCPError]) -> None:
    error = cls("what happened", bucket="known", attempts=1)
    located = error.locate(**CONTEXT)
    assert type(located) is cls
    assert located.message == "what happened"
    assert located.context == {**CONTEXT, "bucket": "known", "attempts": 1}
    # The original may already be on its way elsewhere.
    assert error.context == {"bucket": "known", "attempts": 1}
    assert error.locate().context == error.context


CONTEXTS = st.fixed_dictionaries(
    {},
    optional={
        "bucket": st.text(max_size=8),
        "key": st.text(max_size=8),
        "byte_range": st.tuples(st.integers(0), st.integers(0)),
        "tensor": st.text(max_size=8),
        "operation": st.text(max_size=8),
        "request_id": st.text(max_size=8),
        "attempts": st.integers(0, 100),
    },
)


@given(st.sampled_from(CLASSES), st.text(max_size=20), CONTEXTS, CONTEXTS)
def test_any_context_survives_and_merges(
    cls: type[S3DCPError], message: str, first: dict[str, Any], second: dict[str, Any]
) -> None:
    twin = pickle.loads(pickle.dumps(cls(message, **first).locate(**second)))
    assert twin.context == {**second, **first}
    assert twin.message == message
    assert message in str(twin)


@pytest.mark.parametrize(("attempts", "text"), [(1, "(1 attempt)"), (2, "(2 attempts)")])
def test_attempts_are_counted_in_english(attempts: int, text: str) -> None:
    assert str(S3DCPError("no", attempts=attempts)) == f"no {text}"


@every_class
def test_there_is_no_place_for_a_credential(cls: type[S3DCPError]) -> None:
    for name in ("credentials", "secret_access_key", "config", "session_token"):
        with pytest.raises(TypeError, match=name):
            cls("what happened", **{name: "hush-hush"})
    parameters = set(inspect.signature(cls).parameters) - {"message"}
    assert parameters == set(CONTEXT)
    # Nor does anything ride along that is not shown to whoever reads the error.
    error = cls("what happened", **CONTEXT)
    assert set(vars(error)) == {"message", *CONTEXT}


@every_class
def test_an_attribute_that_somebody_adds_does_not_cross(cls: type[S3DCPError]) -> None:
    error: Any = cls("what happened")
    error.response = {"secret": "hush-hush"}
    error.__cause__ = RuntimeError("hush-hush")
    assert b"hush-hush" not in pickle.dumps(error)


def test_one_import_catches_everything() -> None:
    assert torch_s3dcp.S3DCPError is S3DCPError
    assert all(issubclass(cls, S3DCPError) for cls in CLASSES)
