"""The rows of the table of faults: what the proxy does to which requests of a save or a load."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch_s3dcp.testing import FaultRule, faults

_DATA = "*.distcp"
_BODIES = ("PutObject", "UploadPart")


def _second_file(key: str) -> bool:
    return re.search(r"/__0_1[_.]", key) is not None


@dataclass(frozen=True)
class Row:
    """One fault.

    ``old``: a version lies there already when a save begins. ``outage``: seconds for which the
    server is gone, from the first request that the rule strikes.
    """

    name: str
    action: str
    text: str
    rule: FaultRule
    threads: int = 1
    old: bool = False
    outage: float = 0.0


def _load(name: str, text: str, fault: Any, **conditions: Any) -> Row:
    return Row(name, "load", text, FaultRule(fault, "GetObject", _DATA, **conditions))


def _save(name: str, text: str, fault: Any, operation: Any = _BODIES, **conditions: Any) -> Row:
    conditions.setdefault("key", _DATA)
    return Row(name, "save", text, FaultRule(fault, operation, **conditions))


def _refused(name: str, text: str, old: bool) -> Row:
    denied = FaultRule(faults.Reply(403, "AccessDenied"), _WRITES, _second_file)
    return Row(name, "save", text, denied, threads=4, old=old)


_WRITES = (*_BODIES, "CreateMultipartUpload")
_SLOW = faults.Reply(503, "SlowDown")
_EXPIRED = faults.Reply(400, "ExpiredToken")
_FIRST_DATA = FaultRule(faults.Reset("body"), "GetObject", _DATA, count=1)
_FIRST_BODY = FaultRule(faults.Reset("upload"), _BODIES, _DATA, count=1)
_COMPLETE = "CompleteMultipartUpload"

ROWS = [
    Row("clean-load", "load", "none", FaultRule(faults.WireFault(), count=0)),
    _load("flip-once", "one bit flipped, once", faults.FlipBit(), count=1),
    _load("flip-always", "every GET flipped", faults.FlipBit()),
    _load("fin", "FIN mid-body", faults.Truncate(), count=1),
    _load("rst", "RST mid-body, three times", faults.Reset("body"), count=3),
    _load("short", "short Content-Length", faults.Shorten(), count=1),
    _load("slow-4", "503 SlowDown x4", _SLOW, count=4),
    _load("slow-8", "503 SlowDown x8", _SLOW, count=8),
    _load("half-500", "500 with probability 0.5", faults.Reply(500), probability=0.5),
    _load("expired", "ExpiredToken once", _EXPIRED, count=1),
    _load("no-range", "Range ignored, 200 and whole body", faults.IgnoreRange()),
    _load("wrong-range", "wrong range, once", faults.WrongRange(), count=1),
    _load("wrong-range-lie", "the same, the header lies", faults.WrongRange(lie=True), count=1),
    _load("stall", "stall 8 s mid-body", faults.Stall(8), count=1),
    _load("black-hole", "black hole once", faults.BlackHole(), count=1),
    _load("trickle", "trickle at 20 kB/s, once", faults.Trickle(20_000), count=1),
    Row("restart", "load", "server restarts for 10 s", _FIRST_DATA, outage=10),
    Row("clean-save", "save", "none", FaultRule(faults.WireFault(), count=0)),
    _save("save-flip", "one bit flipped in one body", faults.FlipBit("request"), count=1),
    _save("save-slow", "503 x4", _SLOW, count=4),
    _save("save-rst", "RST x3", faults.Reset(), count=3),
    _save("save-lost", "answer of Complete lost", faults.Reset("answer"), _COMPLETE, count=1),
    _save("save-200", "Complete: 200 with an error", faults.Reply(200), _COMPLETE, count=1),
    _save(
        "commit-lost",
        "answer to the commit lost",
        faults.Reset("answer"),
        ("PutObject", "CompleteMultipartUpload", "CopyObject"),
        key="*/.metadata*",
        count=1,
    ),
    _save("save-hole", "black hole once", faults.BlackHole(), count=1),
    Row("save-restart", "save", "server restarts for 10 s", _FIRST_BODY, outage=10),
    _refused("refused", "one of 4 files refused", old=False),
    _refused("refused-over", "v2 over v1, one file refused", old=True),
]
