"""Faults of all kinds over saves and loads: success with the right bits, or a typed error.

Nothing may be lost, corrupt, mixed or hang; what ends by itself must be survived.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from typing import Any

from torch_s3dcp import available_readers
from torch_s3dcp.testing import FaultRule, faults

from ._checkpoints import MIB
from ._faulted import Run, told
from ._workers import perform
from .report import Report
from .report import main as _main

_SHARE = 0.999
_SHAPES = ((40_000, 8, 120_000), (4, 300_000, 2000, 2000), (600_000,), (12 * MIB, 4000))
_LOADS = ("GetObject",)
_SAVES = ("PutObject", "UploadPart", "CreateMultipartUpload", "CompleteMultipartUpload")
_EXPIRED = faults.Reply(400, "ExpiredToken")
_KEYS = (None, None, "*.distcp", "*/.metadata")


def _anywhere(choose: random.Random) -> faults.WireFault:
    """Faults of any request."""
    return choose.choice(
        [
            faults.Reply(503, "SlowDown"),
            faults.Reply(503, "ServiceUnavailable", retry_after=0),
            faults.Reply(500, "InternalError"),
            faults.Reply(400, "RequestTimeout"),
            _EXPIRED,
            faults.Reset("request"),
            faults.Reset("unseen"),
            faults.Reset("answer"),
            faults.Garbage(),
            faults.Delay(0.2),
            faults.BlackHole(),
        ]
    )


def _in_answers(choose: random.Random) -> faults.WireFault:
    return choose.choice(
        [
            faults.Reset("body"),
            faults.Truncate(),
            faults.Shorten(),
            faults.FlipBit(),
            faults.WrongRange(choose.choice([-512, 1, 64, 4096])),
            faults.WrongRange(choose.choice([-512, 1, 64, 4096]), lie=True),
            faults.IgnoreRange(),
            faults.Stall(0.4),
            faults.Trickle(choose.choice([300_000, 3_000_000])),
        ]
    )


def _in_uploads(choose: random.Random) -> faults.WireFault:
    return choose.choice(
        [
            faults.Reset("upload"),
            faults.FlipBit("request"),
            faults.Late(),
            faults.Reply(400, "BadDigest"),
            faults.Reply(500, acted=True),
        ]
    )


def _for_good(choose: random.Random) -> faults.WireFault:
    """What asking again does not help against."""
    return choose.choice(
        [
            faults.Reply(403, "AccessDenied"),
            faults.Reply(404, "NoSuchKey"),
            faults.Reply(400, "InvalidRequest"),
            faults.Redirect("http://127.0.0.1:9{target}", choose.choice([301, 302, 307, 308])),
        ]
    )


def draw(choose: random.Random, number: int) -> Run:
    """One run."""
    action = choose.choice(["load", "load", "first", "over"])
    transient = choose.random() < 0.7
    special = _in_answers if action == "load" else _in_uploads
    fault = choose.choice([_anywhere, special])(choose)
    if not transient and choose.random() < 0.3:
        fault = _for_good(choose)
    sizes = choose.choices(_SHAPES, [4, 4, 4, 1])[0]
    saves = _SAVES if max(sizes) > 5 * MIB else _SAVES[:1]
    operation: Any = _LOADS if action == "load" else choose.choice([saves, *saves])
    key = choose.choice(_KEYS)
    if action != "load" and choose.random() < 0.06:
        fault, operation, key = _late_error(choose), "CompleteMultipartUpload", None
        sizes = _SHAPES[-1]
    limits = {"skip": choose.choice([0, 0, 0, 1]), "count": choose.choice([1, 1, 2])}
    if transient and fault == _EXPIRED:
        limits["count"] = 1  # keys that do not change have expired for good the second time
    rule = FaultRule(fault, operation, key, **(limits if transient else {}))
    settings: dict[str, Any] = {"read_timeout": 1.5}
    if not transient:
        settings["max_attempts"] = 2
    options: dict[str, Any] = {"thread_count": choose.choice([1, 1, 2, 4])}
    if choose.random() < 0.3:
        options["single_file_per_rank"] = False
    reader = choose.choice(["direct", "direct", "direct", *available_readers()])
    wanted = choose.randrange(len(sizes) + 1)
    return Run(number, sizes, action, rule, transient, settings, options, reader, wanted)


def _late_error(choose: random.Random) -> faults.WireFault:
    code = choose.choice(["InternalError", "SlowDown"])
    return faults.Reply(200, code, acted=choose.random() < 0.5)


def run(seed: int, runs: int) -> Report:
    """The campaign; each run is drawn from the seed and its number."""
    report = Report("faults", "R1", seed)
    transient = survived = 0
    for one, result in perform(draw, seed, runs):
        lasting = "transient" if one.transient else "lasting"
        report.add(f"{lasting if result.struck else 'not struck'}: {result.outcome}")
        if one.transient and result.struck:
            transient += 1
            survived += result.outcome.startswith("ok")
        if result.problem and not result.outcome.startswith("failed"):
            report.violations.append(told(one, result))
        elif result.problem:
            report.failures.append(told(one, result))
    if survived < _SHARE * transient:
        report.violations.append(f"{survived} of {transient} transient faults were survived")
        report.violations += report.failures
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return _main(run, 10_000, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
