"""What a campaign found, and the command line that all campaigns share."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

_SHOWN = 20


@dataclass
class Report:
    """What came of a campaign's runs.

    Args:
        name: The campaign.
        bar: What it must show, such as ``R1``.
        seed: With it the same campaign runs again.
    """

    name: str
    bar: str
    seed: int
    runs: int = 0
    #: How often each outcome was seen.
    outcomes: Counter[str] = field(default_factory=Counter)
    #: What must not happen: each names the run and its seed.
    violations: list[str] = field(default_factory=list)
    #: What may happen, but only so often: a campaign says how often.
    failures: list[str] = field(default_factory=list)

    #: Measured values by name: shown as least, median and most.
    figures: dict[str, list[float]] = field(default_factory=dict)

    def add(self, outcome: str) -> None:
        """One run more, that ended so."""
        self.runs += 1
        self.outcomes[outcome] += 1

    def __str__(self) -> str:
        came = ", ".join(f"{count} {name}" for name, count in sorted(self.outcomes.items()))
        lines = [f"{self.bar} {self.name}, seed {self.seed}: {self.runs} runs: {came}"]
        lines += [
            f"  {name}: {min(v):.2f} / {statistics.median(v):.2f} / {max(v):.2f} ({len(v)} runs)"
            for name, v in self.figures.items()
        ]
        lines += [f"  VIOLATION {text}" for text in self.violations[:_SHOWN]]
        if len(self.violations) > _SHOWN:
            lines.append(f"  and {len(self.violations) - _SHOWN} more")
        return "\n".join(lines)


def main(
    run: Callable[[int, int], Report], runs: int, about: str | None, argv: Sequence[str] | None
) -> int:
    """The command line of one campaign; returns the exit status.

    Args:
        run: Does it: ``(seed, runs)``.
        runs: Runs of the long form.
        about: The module's docstring.
    """
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=int, default=runs)
    arguments = parser.parse_args(argv)
    begin = time.monotonic()
    report = run(arguments.seed, arguments.runs)
    print(f"{report}\n  {time.monotonic() - begin:.0f} s", flush=True)
    return 1 if report.violations else 0


def all_of(modules: Sequence[str]) -> int:
    """Run the long forms of campaigns one after another; returns the exit status."""
    import importlib

    failed = [name for name in modules if importlib.import_module(name).main([])]
    print("failed: " + ", ".join(failed) if failed else "all campaigns passed", file=sys.stderr)
    return 1 if failed else 0
