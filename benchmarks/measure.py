"""What one piece of work costs: wall time, CPU time, peak memory."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Cost:
    """Seconds of wall and CPU time (all threads), and bytes of peak memory above the start."""

    wall: float
    cpu: float
    extra_peak: int


def measure(work: Callable[[], object]) -> Cost:
    """Run ``work`` once in this process. Memory is read from Linux's ``/proc``."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the present size
    before = _memory("VmRSS")
    used, begin = _cpu_seconds(), time.perf_counter()
    work()
    wall, cpu = time.perf_counter() - begin, _cpu_seconds() - used
    return Cost(wall, cpu, _memory("VmHWM") - before)


def machine() -> dict[str, str | int]:
    """What a reader of the figures needs to know about the machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "memory_gib": round(memory / 2**30),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def run_json(name: str, command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run a command; what its last line says in JSON.

    Raises:
        SystemExit: It failed; with the end of what it said.
    """
    child = {**os.environ, **environment}
    done = subprocess.run(command, env=child, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
