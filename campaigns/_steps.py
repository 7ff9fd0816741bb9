"""What a save did to a bucket, step by step, and all that a crash may have left of it. Pure."""

from __future__ import annotations

import hashlib
import random
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch_s3dcp.testing.request_log import Mutation

_KEY = re.compile(rb"<Key>([^<]*)</Key>")
_PART = re.compile(rb"<PartNumber>(\d+)<")
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class ReplayError(AssertionError):
    """A step cannot be done here: the server would have refused it."""


@dataclass(frozen=True)
class Step:
    """One change of a bucket; of a request that deletes several objects each is one.

    Args:
        kind: ``put``, ``delete``, ``create``, ``part``, ``copy``, ``complete`` or ``abort``.
        begin, end: While the server had it, in seconds.
        source: Of a copy: key, first byte, end.
        parts: Of a completion: the numbers of the parts.
    """

    kind: str
    key: str
    begin: float
    end: float
    upload: str | None = None
    part: int | None = None
    body: bytes = field(default=b"", repr=False)
    source: tuple[str, int, int] | None = None
    parts: tuple[int, ...] = ()
    conditions: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def shows(self) -> bool:
        """Whether a listing can be another one afterwards."""
        return self.kind in ("put", "delete", "complete")

    @property
    def commits(self) -> bool:
        """Whether it makes a checkpoint appear."""
        return self.kind == "put" and self.key.endswith(".metadata")


_KINDS = {
    "PutObject": "put",
    "DeleteObject": "delete",
    "CreateMultipartUpload": "create",
    "UploadPart": "part",
    "UploadPartCopy": "copy",
    "CompleteMultipartUpload": "complete",
    "AbortMultipartUpload": "abort",
}


def steps_of(mutations: Iterable[Mutation]) -> list[Step]:
    """The steps, in the order in which the server finished them."""
    return [step for mutation in mutations for step in _steps(mutation)]


def _steps(mutation: Mutation) -> Iterator[Step]:
    begin, end = mutation.begin, mutation.end
    if mutation.operation == "DeleteObjects":
        for key in _KEY.findall(mutation.body):
            yield Step("delete", key.decode(), begin, end)
        return
    kind, headers = _KINDS[mutation.operation], mutation.headers
    if "aws-chunked" in headers.get("content-encoding", ""):
        raise ValueError("the body is in chunks, which are not taken apart here")
    yield Step(
        kind,
        mutation.key,
        begin,
        end,
        mutation.upload_id,
        mutation.part,
        mutation.body,
        _source(headers) if kind == "copy" else None,
        tuple(map(int, _PART.findall(mutation.body))) if kind == "complete" else (),
        dict(mutation.conditions),
        {
            name.removeprefix("x-amz-meta-"): text
            for name, text in headers.items()
            if name.startswith("x-amz-meta-")
        },
    )


def _source(headers: Mapping[str, str]) -> tuple[str, int, int]:
    place = urllib.parse.unquote(headers["x-amz-copy-source"]).lstrip("/")
    found = _RANGE.fullmatch(headers["x-amz-copy-source-range"])
    assert found, headers["x-amz-copy-source-range"]
    return place.partition("/")[2], int(found[1]), int(found[2]) + 1


# --- what may be left -------------------------------------------------------------------


def needs(steps: Sequence[Step]) -> list[int]:
    """For each step the set of those that must come before it, as bits.

    Only what cannot be otherwise counts: the order within an upload and of writes to one key,
    and that all which had ended when the commit began came before it. That two uploads came one
    after the other was chance, or one thread; here either may be there without the other.
    """
    return [
        sum(1 << n for n, earlier in enumerate(steps[:number]) if _comes_first(earlier, step))
        for number, step in enumerate(steps)
    ]


def _comes_first(one: Step, other: Step) -> bool:
    if one.upload is not None and one.upload == other.upload:
        sent = ("part", "copy")
        return not (one.kind in sent and other.kind in sent and one.part != other.part)
    if one.key == other.key and one.shows and other.shows:
        return True
    return (one.commits or other.commits) and one.end <= other.begin


def contests(steps: Sequence[Step]) -> list[tuple[Step, Step]]:
    """Steps that the server had at one time, of which the last one decides what is there."""
    return [
        (one, other)
        for number, one in enumerate(steps)
        for other in steps[number + 1 :]
        if one.key == other.key
        and one.shows
        and other.shows
        and one.begin < other.end
        and other.begin < one.end
    ]


def crash_points(steps: Sequence[Step], most: int, seed: int) -> tuple[set[int], bool]:
    """All sets of steps that may have been done when a save dies, as bits; whether these are all.

    Each holds what its steps need. Of more than ``most`` some are chosen.
    """
    before = needs(steps)
    found, ahead = {0}, [0]
    while ahead:
        done = ahead.pop()
        for following in _following(done, before):
            if following not in found:
                found.add(following)
                ahead.append(following)
        if len(found) > most:
            return _some(before, most, random.Random(seed)), False
    return found, True


def _following(done: int, before: Sequence[int]) -> list[int]:
    return [
        done | 1 << n
        for n, needed in enumerate(before)
        if not done >> n & 1 and needed & done == needed
    ]


def _some(before: Sequence[int], most: int, choose: random.Random) -> set[int]:
    found = {0}
    while len(found) < most:
        done = 0
        while following := _following(done, before):
            done = choose.choice(following)
            found.add(done)
    return found


# --- a bucket ---------------------------------------------------------------------------


@dataclass
class Bucket:
    """What a server has after some steps: objects, and uploads that were begun."""

    objects: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)

    def copy(self) -> Bucket:
        """One that goes its own way."""
        return Bucket(dict(self.objects), {name: dict(p) for name, p in self.uploads.items()})

    def do(self, step: Step) -> None:
        """One step; raises ReplayError where a server would refuse it."""
        if step.kind == "put":
            self._check(step)
            self.objects[step.key] = step.body
        elif step.kind == "delete":
            self.objects.pop(step.key, None)
        elif step.kind == "create":
            self.uploads[str(step.upload)] = {}
        elif step.kind == "abort":
            del self.uploads[str(step.upload)]
        else:
            self._upload(step)

    def _check(self, step: Step) -> None:
        there = self.objects.get(step.key)
        if "if-none-match" in step.conditions and there is not None:
            raise ReplayError(f"{step.key} is there already")
        wanted = step.conditions.get("if-match")
        etag = None if there is None else hashlib.md5(there).hexdigest()
        if wanted is not None and wanted.strip('"') != etag:
            raise ReplayError(f"{step.key} is not what the put replaced")

    def _upload(self, step: Step) -> None:
        if step.upload not in self.uploads:
            raise ReplayError(f"no upload {step.upload}")
        parts = self.uploads[step.upload]
        if step.kind == "complete":
            self.objects[step.key] = b"".join(parts[number] for number in step.parts)
            del self.uploads[step.upload]
            return
        assert step.part is not None
        if step.source is None:
            parts[step.part] = step.body
            return
        key, start, end = step.source
        if key not in self.objects:
            raise ReplayError(f"{key} is gone")
        parts[step.part] = self.objects[key][start:end]
