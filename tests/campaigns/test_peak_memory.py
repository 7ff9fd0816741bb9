"""Memory against a slow server: the short form of the campaign."""

from __future__ import annotations

import pytest

from campaigns import memory

pytestmark = [pytest.mark.server, pytest.mark.slow]


def test_memory_stays_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CASES", [("load", "converted", 1), ("save", "transposed", 2)])
    report = memory.run(seed=1, runs=1)
    assert not report.violations, str(report)
    assert report.runs == 2
    # It is measured at all: what is converted passes through scratch.
    (scratch,) = report.figures["load, converted: MiB beside the tensors"]
    assert scratch > 8
