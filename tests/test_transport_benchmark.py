"""The comparison of clients runs, and every client receives what is there, at a tiny size."""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / os.environ.get("TORCH_S3DCP_PEERS_PYTHON", ".venv-peers/bin/python")
pytestmark = pytest.mark.slow

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs the command once for each client; gives its results."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))

    def run_command(server: str, *candidates: str) -> dict[str, Any]:
        file = tmp_path / "transports.json"
        words = ["--tiny", "--rounds", "1", "--json", str(file), "--server", server]
        monkeypatch.setattr(sys, "argv", ["transports", *words, "--candidates", *candidates])
        runpy.run_module("benchmarks.transports", run_name="__main__")
        answer: dict[str, Any] = json.loads(file.read_text())
        return answer

    return run_command


@pytest.mark.parametrize("server", ["static", "https"])
def test_clients(run: Run, server: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["sockets", "boto3", "boto3:blocks", "ours", "awscrt", "awscrt:split"]
    rows = run(server, *names)[server]["rows"]
    assert [row["candidate"] for row in rows] == names
    assert all(row["gb_per_s"] > 0 for row in rows)
    assert "| `awscrt:split` |" in capsys.readouterr().out


@pytest.mark.peers
@pytest.mark.skipif(not PEERS.exists() or sys.version_info < (3, 11), reason="no obstore")
def test_clients_of_the_other_environment(run: Run) -> None:
    rows = run("https", "obstore", "obstore:blocks")["https"]["rows"]
    assert [row["candidate"] for row in rows] == ["obstore", "obstore:blocks"]


@pytest.mark.skipif(find_spec("obstore") is not None, reason="obstore is here")
def test_a_missing_package_is_left_out(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.commands.PEERS", "no/such/python")
    rows = run("static", "sockets", "obstore")["static"]["rows"]
    assert [row["candidate"] for row in rows] == ["sockets"]
    assert "left out: obstore" in capsys.readouterr().out
