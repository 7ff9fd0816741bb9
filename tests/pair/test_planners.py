"""Planners of a user's own: what they change is honoured, what they raise comes out."""

from __future__ import annotations

import copy
import dataclasses
import threading
import uuid
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support.dcp import READERS, Place, assert_same, blank, failures, quiet, randn
from support.transports import Tap, raise_on
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    ReadItem,
    SavePlan,
    WriteItem,
)

from torch_s3dcp.exceptions import ThrottledError

ONE_BY_ONE = ("dcp_optimized", "range_based", "sequential")
STATE = {"a": randn(40, 30, seed=1), "b": randn(20, seed=2), "c": [1, "two"], "d": randn(7, seed=3)}


class Trimming(dcp.DefaultLoadPlanner):
    """Gives up all items but some, after the global plan was made."""

    def __init__(self, *keep: str) -> None:
        super().__init__()
        self.keep = keep

    def finish_plan(self, new_plan: LoadPlan) -> LoadPlan:
        items = [item for item in new_plan.items if item.storage_index.fqn in self.keep]
        return dataclasses.replace(new_plan, items=items)


class Reversing(dcp.DefaultLoadPlanner):
    """Turns the order of the items around."""

    def finish_plan(self, new_plan: LoadPlan) -> LoadPlan:
        return dataclasses.replace(new_plan, items=new_plan.items[::-1])


class Renaming(dcp.DefaultLoadPlanner):
    """Loads each name from another name of the checkpoint."""

    def __init__(self, names: dict[str, str]) -> None:
        super().__init__()
        self.names = names

    def set_up_planner(
        self, state_dict: Any, metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        assert metadata is not None
        known = {
            new: metadata.state_dict_metadata[old]
            for new, old in self.names.items()
            if old in metadata.state_dict_metadata
        }
        seen = dataclasses.replace(metadata, state_dict_metadata=known)
        super().set_up_planner(state_dict, seen, is_coordinator)

    def create_local_plan(self) -> LoadPlan:
        plan = super().create_local_plan()
        items = []
        for item in plan.items:
            index = item.storage_index
            old = dataclasses.replace(index, fqn=self.names[index.fqn])
            items.append(dataclasses.replace(item, storage_index=old))
        return dataclasses.replace(plan, items=items)


class Slicing(dcp.DefaultLoadPlanner):
    """Wants parts of the stored tensor ``a``, each in a tensor of its own."""

    def __init__(self, parts: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
        super().__init__()
        self.parts = parts

    def create_local_plan(self) -> LoadPlan:
        return LoadPlan(
            [
                ReadItem(
                    type=LoadItemType.TENSOR,
                    dest_index=MetadataIndex(name, torch.Size([0] * len(sizes))),
                    dest_offsets=torch.Size([0] * len(sizes)),
                    storage_index=MetadataIndex("a", torch.Size([0, 0])),
                    storage_offsets=torch.Size(offsets),
                    lengths=torch.Size(sizes),
                )
                for name, (offsets, sizes) in self.parts.items()
            ]
        )


class Watching(dcp.DefaultLoadPlanner):
    """Notes what is asked of it, by whom, and keeps the plan that it gave away."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int] = set()
        self.open: dict[int, torch.Tensor] = {}
        self.most_open = 0
        self.committed: list[str] = []

    def finish_plan(self, new_plan: LoadPlan) -> LoadPlan:
        self.given = new_plan
        self.as_given = copy.deepcopy(new_plan)
        self.items = list(new_plan.items)
        return new_plan

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        self.threads.add(threading.get_ident())
        tensor = super().resolve_tensor(read_item)
        self.open[id(read_item)] = tensor
        self.most_open = max(self.most_open, len(self.open))
        return tensor

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        self.threads.add(threading.get_ident())
        assert self.open.pop(id(read_item)) is tensor, "another tensor than was resolved"
        self.committed.append(read_item.dest_index.fqn)

    def load_bytes(self, read_item: ReadItem, value: Any) -> None:
        self.threads.add(threading.get_ident())
        super().load_bytes(read_item, value)


@pytest.fixture
def saved(memory: Place) -> Place:
    memory.save(STATE, "run", thread_count=2)
    return memory


@pytest.mark.parametrize("reader", READERS)
def test_a_trimmed_plan_reads_only_what_is_left(saved: Place, reader: str) -> None:
    tap = Tap(saved.transport)
    target = blank(STATE)
    saved.over(tap).load(target, "run", Trimming("b"), reader_constructor=reader)
    assert_same(target["b"], STATE["b"])
    assert_same(target["a"], blank(STATE)["a"])
    assert target["c"] == blank(STATE)["c"]
    data = {call.key for call in tap.of("get") if call.key.endswith(".distcp")}
    assert len(data) == 1, "the other file is not wanted"


@pytest.mark.parametrize("reader", READERS)
def test_a_reordered_plan(saved: Place, reader: str) -> None:
    loaded = saved.load(blank(STATE), "run", Reversing(), reader_constructor=reader)
    assert_same(loaded, STATE)


@pytest.mark.parametrize("reader", READERS)
def test_renamed_items(saved: Place, reader: str) -> None:
    target = {"new_a": torch.zeros(40, 30), "new_d": torch.zeros(7)}
    planner = Renaming({"new_a": "a", "new_d": "d"})
    saved.load(target, "run", planner, reader_constructor=reader)
    assert_same(target, {"new_a": STATE["a"], "new_d": STATE["d"]})


@pytest.mark.parametrize("reader", READERS)
def test_slices_of_one_stored_chunk_are_fetched_once(saved: Place, reader: str) -> None:
    parts = {
        "rows": ((5, 0), (10, 30)),
        "columns": ((0, 29), (40, 1)),
        "block": ((3, 4), (5, 6)),
        "overlap": ((4, 5), (5, 6)),
        "all": ((0, 0), (40, 30)),
        "cell": ((39, 29), (1, 1)),
    }
    target = {name: torch.zeros(sizes) for name, (_, sizes) in parts.items()}
    tap = Tap(saved.transport)
    saved.over(tap).load(target, "run", Slicing(parts), reader_constructor=reader)
    for name, (offsets, sizes) in parts.items():
        rows, columns = (slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))
        assert_same(target[name], STATE["a"][rows, columns], name)
    gets = [call for call in tap.of("get") if call.key.endswith(".distcp")]
    ends = [(call.span[0], call.span[1] or 10**9) for call in gets if call.span]
    assert len({call.key for call in gets}) == 1
    assert all(start >= end for (_, end), (start, _) in pairwise(sorted(ends))), "fetched twice"


@pytest.mark.parametrize("reader", READERS)
def test_planners_are_called_in_one_thread_and_in_pairs(saved: Place, reader: str) -> None:
    planner = Watching()
    saved.load(blank(STATE), "run", planner, reader_constructor=reader)
    assert planner.threads == {threading.get_ident()}
    assert sorted(planner.committed) == ["a", "b", "d"]
    assert not planner.open
    if reader in ONE_BY_ONE:
        assert planner.most_open == 1, "resolve_tensor may allocate: not for all items at once"


def test_a_plan_is_not_changed(saved: Place) -> None:
    planner = Watching()
    saved.load(blank(STATE), "run", planner)
    assert planner.given == planner.as_given
    assert [id(item) for item in planner.given.items] == [id(item) for item in planner.items]


@pytest.mark.parametrize("reader", READERS)
def test_an_empty_plan_reads_no_data(saved: Place, reader: str) -> None:
    tap = Tap(saved.transport)
    target = blank(STATE)
    saved.over(tap).load(target, "run", Trimming(), reader_constructor=reader)
    assert_same(target, blank(STATE))
    assert {call.key for call in tap.calls} == {"run/.metadata"}


@pytest.mark.parametrize("step", ["resolve_tensor", "commit_tensor", "load_bytes", "finish_plan"])
def test_what_a_load_planner_raises_reaches_the_caller(
    saved: Place, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("of the planner's own")

    planner = dcp.DefaultLoadPlanner()
    monkeypatch.setattr(planner, step, broken)
    with pytest.raises(dcp.api.CheckpointException) as caught:
        saved.load(blank(STATE), "run", planner)
    (error,) = failures(caught.value)
    assert isinstance(error, ZeroDivisionError)
    assert str(error) == "of the planner's own"


# --- saving ---------------------------------------------------------------------------


@pytest.fixture
def caching() -> type[dcp.DefaultSavePlanner]:
    """A planner with a cache of its own: torch keeps cached plans by the name of the class."""

    def make(self: dcp.DefaultSavePlanner) -> None:
        dcp.DefaultSavePlanner.__init__(self, enable_plan_caching=True)

    return type(f"Caching{uuid.uuid4().hex}", (dcp.DefaultSavePlanner,), {"__init__": make})


def model_at(step: int) -> dict[str, Any]:
    return {"w": randn(30, 20, seed=step), "n": {"b": randn(9, seed=50 + step)}, "step": step}


@pytest.mark.parametrize("one_writer", [True, False], ids=["one writer", "new writers"])
@pytest.mark.parametrize("one_path", [True, False], ids=["one path", "new paths"])
def test_cached_plans_save_new_values_to_new_places(
    memory: Place, caching: type[dcp.DefaultSavePlanner], one_writer: bool, one_path: bool
) -> None:
    writer = memory.writer("unused", thread_count=2)
    paths = ["same" if one_path else f"step-{step}" for step in range(3)]
    sent = []
    for step, path in enumerate(paths):
        planner = caching()
        with quiet():
            dcp.save(
                model_at(step),
                checkpoint_id=memory.url(path),
                storage_writer=writer if one_writer else memory.writer(path, thread_count=2),
                planner=planner,
            )
        sent.append(planner.create_local_plan().usable)
        assert_same(memory.load(blank(model_at(step)), path), model_at(step), path)
    assert sent == [False] * 3, "torch did not cache: this test tests nothing"
    for step, path in enumerate(paths):
        if not one_path or step == 2:
            assert_same(memory.load(blank(model_at(step)), path), model_at(step), path)
    assert len(memory.listing()) == (3 if one_path else 9)


def test_cached_plans_survive_a_failed_save(
    memory: Place, caching: type[dcp.DefaultSavePlanner]
) -> None:
    tap = Tap(memory.transport, before=raise_on("upload", "", ThrottledError("slow down")))
    memory.save(model_at(0), "run", caching())
    with pytest.raises(dcp.api.CheckpointException):
        memory.over(tap).save(model_at(1), "run", caching())
    assert_same(memory.load(blank(model_at(0)), "run"), model_at(0))
    memory.save(model_at(2), "run", caching())
    assert_same(memory.load(blank(model_at(2)), "run"), model_at(2))


class Keeping(dcp.DefaultSavePlanner):
    """Keeps the plan that it gave away, and who asked for data."""

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        self.given = super().finish_plan(new_plan)
        self.as_given = copy.deepcopy(self.given)
        self.at_once = 0
        self.inside = 0
        self.asked: list[str] = []
        return self.given

    def resolve_data(self, write_item: WriteItem) -> Any:
        self.inside += 1
        self.at_once = max(self.at_once, self.inside)
        self.asked.append(write_item.index.fqn)
        threading.Event().wait(0.002)
        data = super().resolve_data(write_item)
        self.inside -= 1
        return data


def test_a_save_changes_no_plan_and_asks_for_one_item_at_a_time(memory: Place) -> None:
    state = {f"x{i}": randn(100 + i, seed=i) for i in range(24)}
    planner = Keeping()
    memory.save(state, "run", planner, thread_count=8)
    assert planner.given == planner.as_given
    assert planner.at_once == 1
    assert sorted(planner.asked) == sorted(state)
    assert_same(memory.load(blank(state), "run"), state)


class Halving(dcp.DefaultSavePlanner):
    """Saves other data than it planned: half the precision, and not contiguous."""

    def resolve_data(self, write_item: WriteItem) -> Any:
        data = super().resolve_data(write_item)
        return data.to(torch.bfloat16).t() if write_item.index.fqn == "w" else data


def test_the_stored_layout_follows_the_resolved_tensor(memory: Place) -> None:
    memory.save({"v": randn(5), "w": randn(6, 6), "z": randn(3)}, "run", Halving())
    loaded = memory.load(
        {"v": torch.zeros(5), "w": torch.zeros(6, 6, dtype=torch.bfloat16), "z": torch.zeros(3)},
        "run",
    )
    expected = {"v": randn(5), "w": randn(6, 6).to(torch.bfloat16).t(), "z": randn(3)}
    assert_same(loaded, expected)
