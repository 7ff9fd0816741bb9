"""One measured ``dcp.async_save`` in a process of its own; prints one line of JSON."""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
import warnings
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, cast

import torch.distributed as dist
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, async_save

from .cases import State, make_cases
from .save_systems import Target, make_system, warm_path
from .ticks import Ticker, busy_cores, summary, watch

# What a system's name may say after its colon, joined by "+".
PROCESS, KEPT, NO_GC = "process", "kept", "nogc"
# What is let go of when a save has ended belongs to it.
_AFTER = 0.1
_LONGEST_CONTROL = 5.0


@dataclass(frozen=True)
class Saver:
    """Saves a state in the background, in a thread or a process.

    ``stager``: what copies the state; None: whatever torch takes or makes for each save.
    """

    state: State
    storage: Any
    kind: AsyncCheckpointerType
    stager: DefaultStager | None

    def start(self, path: str) -> Future[Any]:
        """Begin a save."""
        future = async_save(
            self.state,
            checkpoint_id=path,
            storage_writer=self.storage,
            async_checkpointer_type=self.kind,
            async_stager=self.stager,
            no_dist=self.kind is AsyncCheckpointerType.THREAD,
        )
        return cast("Future[Any]", future)


def make_saver(name: str, target: Target, state: State) -> Saver:
    """A saver of a name such as ``ours:4``, ``ours:process`` or ``ours:kept+nogc``."""
    system_name, _, settings = name.partition(":")
    words = set(settings.split("+"))
    kind = AsyncCheckpointerType.THREAD
    if PROCESS in words:
        kind = AsyncCheckpointerType.PROCESS
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    if NO_GC in words:
        gc.disable()
    # The options that torch's own have, which are made for one save each.
    plain = StagingOptions(False, False, False, False)
    stager = DefaultStager(plain) if KEPT in words else None
    system = make_system(f"{system_name}:{''.join(words - {PROCESS, KEPT, NO_GC})}", target)
    system.open()
    system.warm()
    return Saver(state, system.storage, kind, stager)


def measure(saver: Saver, path: str) -> dict[str, Any]:
    """Save once: seconds that the call takes and until it is done, and the ticks meanwhile."""
    done: list[float] = []
    with Ticker() as ticker:
        called = time.perf_counter()
        future = saver.start(path)
        returned = time.perf_counter()
        future.add_done_callback(lambda _: done.append(time.perf_counter()))
        future.result()
        del future
        time.sleep(_AFTER)
    (end,) = done
    return {
        "blocked": returned - called,
        "done": end - called,
        "ticks": summary(ticker.between(returned, end + _AFTER)),
    }


def controls(seconds: float) -> dict[str, Any]:
    """Ticks of so many seconds with nothing going on, and with all cores busy."""
    idle = summary(watch(seconds))
    with busy_cores():
        busy = summary(watch(seconds))
    return {"idle": idle, "busy": busy}


def main() -> None:
    """Save to warm up, save, print."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description="One measured save in the background.")
    parser.add_argument("system")
    parser.add_argument("case", choices=make_cases())
    parser.add_argument("path")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    state = make_cases(options.tiny)[options.case].saved()
    needed = sum(value.nbytes for value in state.values())
    saver = make_saver(options.system, Target(options.path, needed), state)
    saver.start(warm_path(options.path)).result()
    result = measure(saver, options.path)
    result |= controls(min(result["done"], _LONGEST_CONTROL))
    print(json.dumps({**result, "needed": needed, "pid": os.getpid()}))


if __name__ == "__main__":
    main()
