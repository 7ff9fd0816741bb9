"""Every benchmark command runs and checks what it loads, at a size that measures nothing."""

from __future__ import annotations

import json
import os
import re
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / os.environ.get("TORCH_S3DCP_PEERS_PYTHON", ".venv-peers/bin/python")
pytestmark = pytest.mark.slow
SEAWEED = pytest.param("seaweed", marks=pytest.mark.server)

Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs a command with hardly any data, one round; gives its tables."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))

    def run_command(command: str, *options: str) -> list[dict[str, Any]]:
        file = tmp_path / f"{command}.json"
        words = ["--tiny", "--rounds", "1", "--json", str(file), *options]
        monkeypatch.setattr(sys, "argv", [command, *words])
        runpy.run_module(f"benchmarks.{command}", run_name="__main__")
        tables: list[dict[str, Any]] = json.loads(file.read_text())["tables"]
        return tables

    return run_command


@pytest.mark.parametrize(
    ("command", "options", "titles"),
    [
        ("load", ["--server", "https"], ["full"]),
        ("latency", ["--delay", "0.01", "--cold"], ["latency"]),
        ("partial", ["--case", "partial", "--delay", "0.001", "0.01"], ["partial", "partial"]),
        ("reshard", ["--case", "reshard-columns"], ["reshard-columns"]),
        ("small", [], ["small"]),
        ("memory", ["--case", "convert", "--bandwidth", "1e6"], ["convert"]),
    ],
)
def test_command(run: Run, command: str, options: list[str], titles: list[str]) -> None:
    tables = run(command, "--systems", "ours:direct", *options)
    assert [table["setting"]["case"] for table in tables] == titles
    for table in tables:
        (row,) = table["rows"]
        assert row["system"] == "ours:direct"
        assert row["requests"] >= 2
        (measured,) = table["runs"]["ours:direct"]
        assert measured["needed"] > 0


def test_systems_without_a_client_of_ours(run: Run) -> None:
    (table,) = run("load", "--server", "https", "--systems", "filesystem", "floor")
    assert [row["system"] for row in table["rows"]] == ["filesystem", "floor"]
    assert table["runs"]["floor"][0]["read"] > 0


@pytest.mark.peers
@pytest.mark.skipif(not PEERS.exists(), reason="`make peers` was not run")
def test_other_packages(run: Run) -> None:
    systems = ["s3torchconnector:dcp_optimized", "fsspec"]
    (table,) = run("load", "--server", "https", "--systems", *systems)
    assert [row["system"] for row in table["rows"]] == systems


@pytest.mark.parametrize("server", [SEAWEED, "sink", "https-sink"])
def test_saves(run: Run, server: str) -> None:
    systems = ["ours", "ours:4", "filesystem", "floor"]
    tables = run("save", "--server", server, "--case", "full", "small", "--systems", *systems)
    assert [table["setting"]["case"] for table in tables] == ["full", "small"]
    for table in tables:
        assert [row["system"] for row in table["rows"]] == systems
        for system in systems[:3]:
            (measured,) = table["runs"][system]
            assert measured["sent"] > measured["needed"] > 0
        # HEAD and PUT of the metadata, and PUT of one object of data.
        assert table["runs"]["ours"][0]["requests"] == 3


@pytest.mark.peers
@pytest.mark.skipif(not PEERS.exists(), reason="`make peers` was not run")
@pytest.mark.parametrize(
    "server", [pytest.param("seaweed", marks=pytest.mark.server), "https-sink"]
)
def test_saves_of_other_packages(run: Run, server: str, capsys: pytest.CaptureFixture[str]) -> None:
    systems = [*(f"s3torchconnector:{threads}" for threads in (1, 4, 8)), "fsspec"]
    (table,) = run("save", "--server", server, "--systems", "s3torchconnector", "fsspec")
    able = systems if server == "seaweed" else systems[:-1]
    assert [row["system"] for row in table["rows"]] == able
    assert ("left out: fsspec" in capsys.readouterr().out) == (able != systems)


@pytest.mark.server
def test_delta_saves(run: Run) -> None:
    tables = run("delta")
    assert [table["title"] for table in tables] == ["last", "scattered"]
    for table in tables:
        (full,), (delta,) = table["runs"]["full"], table["runs"]["delta"]
        assert full["bytes_stored"] == delta["bytes_stored"]
        assert 0 < delta["bytes_uploaded"] < 0.15 * full["bytes_uploaded"]


@pytest.mark.parametrize("server", [SEAWEED, "sink"])
def test_saves_in_the_background(run: Run, server: str) -> None:
    systems = ["ours", "ours:kept+nogc", "ours:process", "filesystem"]
    (table,) = run("async_save", "--server", server, "--systems", *systems)
    assert [row["system"] for row in table["rows"]] == [*systems, "idle", "busy"]
    for row in table["rows"]:
        assert 0 < row["late_p50"] <= row["late_p99"] <= row["late_max"]
        assert 0 <= row["stall_p50"] <= row["stall_p99"] <= row["stall_max"] <= row["late_max"]
    for system in systems:
        (measured,) = table["runs"][system]
        assert 0 < measured["blocked"] < measured["done"]
        assert measured["ticks"]["ticks"] > 0


@pytest.mark.peers
@pytest.mark.skipif(not PEERS.exists(), reason="`make peers` was not run")
def test_saves_of_other_packages_in_the_background(run: Run) -> None:
    systems = ["s3torchconnector:1", "s3torchconnector:4"]
    (table,) = run("async_save", "--server", "sink", "--systems", "s3torchconnector")
    assert [row["system"] for row in table["rows"]] == [*systems, "idle", "busy"]


def test_a_lock_that_is_kept_is_noticed(run: Run) -> None:
    from benchmarks.ticks import PERIOD, Ticker

    with Ticker() as ticker:
        while not ticker.ticks:
            time.sleep(PERIOD)
        before = time.thread_time()
        sum(range(5 * 10**6))  # one call in C, which gives the lock to nobody
        kept = time.thread_time() - before
    noticed = [t for t in ticker.ticks if min(t.late + PERIOD, t.others) >= kept / 2]
    assert noticed
    assert all(0 <= tick.stalled <= tick.late for tick in noticed)


def test_lateness_is_told_apart(run: Run) -> None:
    from benchmarks.ticks import Tick, summary

    machine = Tick(end=1.0, late=0.010, queued=0.010, others=0.004)
    holder_waits = Tick(end=1.1, late=0.020, queued=0.002, others=0.003)
    lock = Tick(end=1.2, late=0.030, queued=0.005, others=0.090)
    told = summary([machine, holder_waits, lock])
    assert told["late_max"] == pytest.approx(30)
    assert [tick.stalled for tick in (machine, holder_waits, lock)] == pytest.approx(
        [0, 0.003, 0.025]
    )
    assert told["stall_p50"] == pytest.approx(3)
    assert told["stall_max"] == pytest.approx(25)
    assert told["stalled_share"] == pytest.approx(0.028 / (1.2 - 1.0 + 0.011))
    with pytest.raises(SystemExit):
        summary([])


def test_a_save_of_something_else_ends_the_run(run: Run, tmp_path: Path) -> None:
    from benchmarks.cases import make_cases
    from benchmarks.checkpoints import save_by_one
    from benchmarks.save_places import check_files

    case = make_cases(tiny=True)["small"]
    state = case.saved()
    save_by_one(state, tmp_path / "right", 1)
    assert check_files(case, tmp_path / "right") > 0
    state["tensor.00001"][3] += 1
    save_by_one(state, tmp_path / "wrong", 1)
    with pytest.raises(SystemExit, match=r"tensor\.00001"):
        check_files(case, tmp_path / "wrong")


def test_bytes_that_do_not_arrive_end_the_run(run: Run, tmp_path: Path) -> None:
    from benchmarks.cases import make_cases
    from benchmarks.checkpoints import save_by_one
    from benchmarks.save_places import Sink
    from benchmarks.servers import sink_server

    case = make_cases(tiny=True)["small"]
    save_by_one(case.saved(), tmp_path, 1)
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    (name,) = files.keys() - {".metadata"}
    with sink_server(tmp_path) as environment:
        places = Sink(environment)

        def check(*puts: tuple[str, bytes]) -> int:
            bucket, prefix = places.new().removeprefix("s3://").split("/")
            for key, data in puts:
                places.client.put_object(Bucket=bucket, Key=f"{prefix}/{key}", Body=data)
            return places.check(case)

        metadata, data = (".metadata", files[".metadata"]), (name, files[name])
        assert check(data, metadata) == sum(map(len, files.values()))
        with pytest.raises(SystemExit, match=name):
            check((name, files[name][:-1]), metadata)
        with pytest.raises(SystemExit, match="were received"):
            check(data, data, metadata)


def test_a_delay_needs_a_server_that_can_wait(run: Run) -> None:
    with pytest.raises(SystemExit, match="--delay"):
        run("load", "--delay", "0.1")


def test_a_name_stands_for_all_of_its_systems(run: Run) -> None:
    from benchmarks.compare import chosen_systems
    from torch_s3dcp import available_readers

    ours = [f"ours:{name}" for name in available_readers()]
    assert chosen_systems(["floor", "ours"]) == ["floor", *ours]
    assert chosen_systems(["ours:direct"]) == ["ours:direct"]
    assert set(chosen_systems(None)) >= {*ours, "filesystem", "floor"}


def test_a_name_that_is_a_system_stands_for_itself(run: Run) -> None:
    from benchmarks.save import chosen_systems

    known = ["ours", "ours:4", "filesystem", "floor"]
    assert chosen_systems(["ours"], "sink", known) == ["ours"]
    assert chosen_systems(["floor", "ours:4"], "sink", known) == ["floor", "ours:4"]
    assert chosen_systems(None, "seaweed", known) == known


def test_a_wrong_byte_ends_the_run(run: Run) -> None:
    from benchmarks.cases import make_cases
    from benchmarks.child import check

    saved = make_cases(tiny=True)["convert"].saved()
    loaded = {name: value.float() for name, value in saved.items()}
    check(loaded, saved)
    loaded["tensor.00001"][3] += 1
    with pytest.raises(SystemExit, match=r"tensor\.00001"):
        check(loaded, saved)


def test_a_plot_is_the_same_each_time(run: Run, tmp_path: Path) -> None:
    from benchmarks.plot import draw

    row = {"gb_per_s": 1.5, "cpu_s_per_gb": 0.25}
    rows = [{"system": name, **row} for name in ("ours:direct", "fsspec", "floor")]
    tables = [{"title": "full: 1 GB", "rows": rows}, {"title": "small", "rows": rows[:1]}]
    files = [tmp_path / name for name in ("one.svg", "other.svg")]
    for file in files:
        draw(tables, ["gb_per_s", "cpu_s_per_gb"], file)
    text = files[0].read_text()
    assert text == files[1].read_text()
    for word in ("ours:direct", "fsspec", "1.50", "0.25", "full: 1 GB"):
        assert f">{word}</text>" in text


def test_slices_are_cut_as_dtensor_cuts(run: Run) -> None:
    from benchmarks.cases import expected_part, make_cases

    case = make_cases(tiny=True)["reshard-rows"]
    try:
        wanted, saved = case.wanted(), case.saved()
        for name, value in wanted.items():
            part = expected_part(name, value, saved)
            assert part.shape == value.to_local().shape
            assert torch.equal(part, saved[name][17:34])
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.server
def test_the_table_of_faults(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    rows = ["slow-4", "refused-over"]
    words = ["--mib", "6", "--systems", "ours", "--rows", *rows]
    monkeypatch.setattr(sys, "argv", ["fault_table", *words])
    runpy.run_module("benchmarks.fault_table", run_name="__main__")
    printed = capfd.readouterr().out
    assert re.search(r"\| 503 SlowDown x4 \| ok \d", printed)
    assert re.search(r"file refused \| raises AccessDeniedError; then load: v1 \d", printed)
