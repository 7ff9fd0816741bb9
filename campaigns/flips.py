"""Single bits flipped on the way up and down: all are detected, and repaired if they flip once.

As many runs without a flip must raise no alarm.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence

from torch_s3dcp import available_readers
from torch_s3dcp.testing import FaultRule, faults

from ._checkpoints import MIB
from ._faulted import Run, told
from ._workers import perform
from .report import Report
from .report import main as _main

_SMALL = ((40_000, 8, 120_000), (4, 300_000, 2000, 2000), (600_000,))
_LARGE = (12 * MIB, 4000)
# Body, operation, key, and whether only an upload in parts has such requests.
_PLACES = [
    ("answer", "GetObject", "*.distcp", False),
    ("answer", "GetObject", "*.distcp", False),
    ("answer", "GetObject", "*/.metadata", False),
    ("request", "PutObject", "*.distcp", False),
    ("request", "PutObject", "*/.metadata", False),
    ("request", "UploadPart", "*.distcp", True),
]
# What these say is checked by neither side: a flip must do no harm, but need not be repaired.
_XML = [
    ("request", "CompleteMultipartUpload", "*.distcp", True),
    ("answer", "CompleteMultipartUpload", "*.distcp", True),
    ("answer", "CreateMultipartUpload", "*.distcp", True),
    ("answer", "ListObjectsV2", None, False),
]


def draw(choose: random.Random, number: int) -> Run:
    """One run: of two, one is clean."""
    xml = choose.random() < 0.1
    body, operation, key, large = choose.choice(_XML if xml else _PLACES)
    once = choose.random() < 0.7
    fault = faults.FlipBit("request" if body == "request" else "answer")
    rule = FaultRule(fault, operation, key, count=1 if once else None)
    if number % 2:
        rule = None  # type: ignore[assignment]
    sizes = _LARGE if large else choose.choices([*_SMALL, _LARGE], [6, 6, 6, 1])[0]
    loads = operation == "GetObject"
    action = "load" if loads else choose.choice(["first", "over"])
    options = {"thread_count": choose.choice([1, 2])}
    settings = {} if once else {"max_attempts": 2}
    reader = choose.choice(["direct", "direct", "direct", *available_readers()])
    transient = once and not xml
    return Run(number, sizes, action, rule, transient, settings, options, reader)


def run(seed: int, runs: int) -> Report:
    """The campaign; ``runs`` flips, and as many runs without."""
    report = Report("flips", "R2", seed)
    for one, result in perform(draw, seed, 2 * runs):
        operation = one.rule.operation if one.rule else ""
        where = operation if isinstance(operation, str) else "?"
        often = "" if one.rule is None else " once" if one.rule.count else " always"
        kind = f"{where}{often}" if one.rule else "clean"
        report.add(
            f"{kind}{'' if result.struck or not one.rule else ', no flip'}: {result.outcome}"
        )
        if result.problem:
            report.violations.append(told(one, result))
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return _main(run, 2_000, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
