"""Answers to a save's requests are lost: the short form of the campaign."""

from __future__ import annotations

import pytest

from campaigns import lost_answers

pytestmark = [pytest.mark.server, pytest.mark.multirank]


def test_a_save_succeeds_exactly_once_when_an_answer_is_lost() -> None:
    report = lost_answers.run(seed=1, runs=6)
    assert not report.violations, str(report)
    assert report.runs == 6
    assert all(outcome.startswith("ok without ") for outcome in report.outcomes)
