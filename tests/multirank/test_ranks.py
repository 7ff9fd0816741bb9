"""Sharded states saved by some ranks and loaded by others, on other meshes and placements.

Starting ranks is slow, so a group of them runs all its checks; each test looks at one.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from support.dcp import READERS, Place, assert_same, bits, blank, odd_floats, place_on, randn
from support.ranks import Outcome, run_checks
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import (
    DTensor,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
)

from torch_s3dcp.testing.servers import SeaweedServer
from torch_s3dcp.transports import BotoTransport

# The first test of a group waits for all that its ranks do.
pytestmark = [pytest.mark.multirank, pytest.mark.server, pytest.mark.timeout(600)]

GLOBAL = {
    "square": randn(16, 12, seed=1),
    "half": randn(8, 8, seed=2, dtype=torch.bfloat16),
    # Some ranks get less than others, or nothing.
    "uneven": randn(5, 7, seed=3),
    "tiny": randn(1, 2, seed=4),
    "odd": odd_floats().reshape(4, 2),
    "cube": randn(4, 6, 4, seed=5),
}
PLAIN = {"plain": randn(3, 3, seed=6), "scalar": torch.tensor(2.5), "step": 12, "tags": ["a", "b"]}
LAYOUTS: dict[int, list[tuple[Placement, ...]]] = {
    1: [(Shard(0),), (Shard(1),), (Replicate(),)],
    2: [
        (Shard(0), Shard(1)),
        (Shard(0), Replicate()),
        (Replicate(), Shard(1)),
        (Shard(0), Shard(0)),
        (Shard(1), Shard(0)),
        (Replicate(), Replicate()),
    ],
}


# --- what runs on the ranks -------------------------------------------------------------


def mesh_of(dimensions: int) -> Any:
    world = dist.get_world_size()
    shape = (world,) if dimensions == 1 else (2, world // 2)
    return init_device_mesh("cpu", shape)


def sharded(values: dict[str, torch.Tensor], dimensions: int, turn: int) -> dict[str, DTensor]:
    """The tensors over a mesh; ``turn`` says which tensor gets which placements."""
    mesh, layouts = mesh_of(dimensions), LAYOUTS[dimensions]
    return {
        name: distribute_tensor(value, mesh, layouts[(number + turn) % len(layouts)])
        for number, (name, value) in enumerate(values.items())
    }


def save_sharded(place: Place, path: str, dimensions: int, turn: int, **options: Any) -> Any:
    state = {"model": sharded(GLOBAL, dimensions, turn), **PLAIN}
    metadata = place.save(state, path, **options)
    return sorted({info.relative_path for info in metadata.storage_data.values()})


def load_sharded(place: Place, path: str, dimensions: int, every: int = 1, **options: Any) -> int:
    """Load, placements taking turns over the tensors; compare all that came.

    every: 1: each tensor with each placement; 3: with every third one.
    """
    turns = range(0, len(LAYOUTS[dimensions]), every)
    for turn in turns:
        state: dict[str, Any] = {
            "model": sharded(blank(GLOBAL), dimensions, turn),
            **blank(PLAIN),
        }
        place.load(state, path, **options)
        for name, value in state.pop("model").items():
            assert_same(value.full_tensor(), GLOBAL[name], f"{name} in turn {turn}")
        assert_same(state, PLAIN)
    return len(turns)


def small_model(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(12, 16), torch.nn.LayerNorm(16), torch.nn.Linear(16, 5)]
    return torch.nn.Sequential(*layers)


def trained(seed: int, *, shard: bool) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A model and its optimizer after two steps."""
    model = small_model(seed)
    if shard:
        mesh = mesh_of(1)
        for layer in model.children():
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(2):
        model(randn(4, 12, seed=step)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def whole_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Model and optimizer, gathered on every rank."""
    options = StateDictOptions(full_state_dict=True)
    model_state, optimizer_state = get_state_dict(model, optimizer, options=options)
    return {"model": model_state, "optimizer": optimizer_state}


def fingerprint(value: Any) -> Any:
    """Every bit of a state, in a form that is small to send."""
    if isinstance(value, torch.Tensor):
        return bits(value.full_tensor() if isinstance(value, DTensor) else value)
    if isinstance(value, dict):
        return {key: fingerprint(entry) for key, entry in value.items()}
    return [fingerprint(entry) for entry in value] if isinstance(value, list) else value


def save_fsdp(place: Place, path: str) -> Any:
    model, optimizer = trained(1, shard=True)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    place.save({"model": model_state, "optimizer": optimizer_state}, path, thread_count=2)
    return fingerprint(whole_state(model, optimizer))


def load_fsdp(place: Place, path: str, *, shard: bool = True, **options: Any) -> Any:
    model, optimizer = trained(2, shard=shard)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state = {"model": model_state, "optimizer": optimizer_state}
    place.load(state, path, **options)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
    )
    return fingerprint(whole_state(model, optimizer))


def alone_together(place: Place, path: str) -> list[str]:
    """Every rank saves by itself, below one address, and loads what it saved."""
    rank = dist.get_rank()
    for step in range(2):
        state = {"mine": randn(6, seed=10 * step + rank), "rank": [rank, step]}
        dcp.save(state, storage_writer=place.writer(path), use_collectives=False)
        loaded = {"mine": torch.zeros(6), "rank": [-1, -1]}
        dcp.load(loaded, storage_reader=place.reader(path))
        assert_same(loaded, state)
    dist.barrier()
    return place.listing(f"{path}/")


# --- the groups -------------------------------------------------------------------------

Results = dict[str, list[Outcome]]


@pytest.fixture(scope="module")
def bucket(seaweed: SeaweedServer) -> Iterator[str]:
    name = "ranks-" + secrets.token_hex(6)
    seaweed.create_bucket(name)
    yield name
    seaweed.delete_bucket(name)


@pytest.fixture(scope="module")
def results(seaweed: SeaweedServer, bucket: str) -> dict[int, Results]:
    """What 2 ranks, then 4, then 2 again came to."""
    place, environment = Place(bucket, BotoTransport()), seaweed.environment()
    two = run_checks(
        2,
        {
            "save 1-d": (save_sharded, place, "two/1d", 1, 0),
            "save 2-d": (save_sharded, place, "two/2d", 2, 2),
            "reload": (load_sharded, place, "two/1d", 1),
            "save fsdp": (save_fsdp, place, "two/fsdp"),
            "alone": (alone_together, place, "two/alone"),
        },
        environment,
    )
    four = run_checks(
        4,
        {
            "save 1-d": (save_sharded, place, "four/1d", 1, 1),
            "save 2-d": (save_sharded, place, "four/2d", 2, 0),
            "save fsdp": (save_fsdp, place, "four/fsdp"),
            "load fsdp": (load_fsdp, place, "two/fsdp"),
            **loads("two/1d", place),
            **loads("two/2d", place),
        },
        environment,
    )
    again = run_checks(
        2,
        {
            "load fsdp": (load_fsdp, place, "four/fsdp"),
            **loads("four/1d", place),
            **loads("four/2d", place),
        },
        environment,
    )
    return {2: two, 4: four, -2: again}


def loads(path: str, place: Place) -> dict[str, tuple[Any, ...]]:
    """Checks that load a checkpoint on both kinds of mesh, each reader taking its turn."""
    return {
        f"{path} {reader} {dimensions}-d": (_load_with, place, path, dimensions, reader)
        for reader in READERS
        for dimensions in (1, 2)
    }


def _load_with(place: Place, path: str, dimensions: int, reader: str) -> int:
    # The planner's work is the same for all readers.
    every = 1 if reader == READERS[0] else 3
    return load_sharded(place, path, dimensions, every, reader_constructor=reader)


# --- the tests --------------------------------------------------------------------------


@pytest.mark.parametrize(("ranks", "check"), [(2, "save 1-d"), (2, "save 2-d"), (2, "reload")])
def test_two_ranks_save_and_load(results: dict[int, Results], ranks: int, check: str) -> None:
    for outcome in results[ranks][check]:
        outcome.get()


def test_every_rank_wrote_a_file_of_its_own(results: dict[int, Results]) -> None:
    for ranks in (2, 4):
        names = results[ranks]["save 1-d"][0].get()
        assert [name[:5] for name in names] == [f"__{rank}_0" for rank in range(ranks)]
        assert all(outcome.get() == names for outcome in results[ranks]["save 1-d"])


@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("path", ["two/1d", "two/2d", "four/1d", "four/2d"])
def test_loads_on_another_number_of_ranks(
    results: dict[int, Results], path: str, reader: str, dimensions: int
) -> None:
    group = results[4 if path.startswith("two") else -2]
    for outcome in group[f"{path} {reader} {dimensions}-d"]:
        assert outcome.get() >= 1


@pytest.mark.usefixtures("results")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("path", ["two/1d", "two/2d", "four/1d", "four/2d"])
def test_loads_without_a_process_group(
    seaweed: SeaweedServer, bucket: str, path: str, reader: str
) -> None:
    state = {"model": GLOBAL, **PLAIN}
    loaded = place_on(seaweed, bucket).load(blank(state), path, reader_constructor=reader)
    assert_same(loaded, state)


@pytest.mark.parametrize(("saved", "loaded"), [(2, 4), (4, -2)], ids=["2 to 4", "4 to 2"])
def test_fsdp_on_another_number_of_ranks(
    results: dict[int, Results], saved: int, loaded: int
) -> None:
    expected = results[saved]["save fsdp"][0].get()
    assert expected["optimizer"]["state"], "no optimizer state: this test tests nothing"
    for outcome in results[saved]["save fsdp"] + results[loaded]["load fsdp"]:
        assert outcome.get() == expected


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("path", "ranks"), [("two/fsdp", 2), ("four/fsdp", 4)])
def test_fsdp_without_a_process_group(
    results: dict[int, Results],
    seaweed: SeaweedServer,
    bucket: str,
    path: str,
    ranks: int,
    reader: str,
) -> None:
    place = place_on(seaweed, bucket)
    loaded = load_fsdp(place, path, shard=False, reader_constructor=reader)
    assert loaded == results[ranks]["save fsdp"][0].get()


def test_saves_without_collectives(results: dict[int, Results]) -> None:
    for outcome in results[2]["alone"]:
        keys = outcome.get()
        names = [key.removeprefix("two/alone/") for key in keys]
        assert [name for name in names if name.endswith(".metadata")] == [
            "__0.metadata",
            "__1.metadata",
        ]
        data = [name for name in names if name.endswith(".distcp")]
        assert [name[:5] for name in data] == ["__0_0", "__1_0"]
        assert len(keys) == 4, "the first saves' data is gone"
