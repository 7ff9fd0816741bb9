"""The documentation builds, its examples run, and what it cites exists."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import torch_s3dcp
from torch_s3dcp.testing.servers import MotoServer

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
BUCKET = "my-bucket"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
MIGRATION = DOCS / "reference" / "s3torchconnector.md"

_BLOCK = re.compile(
    r"(?P<skip><!-- not run: [^\n]+ -->\n+)?"
    r"^```python(?: title=\"(?P<title>[\w.]+)\")?\n(?P<source>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_CITATION = re.compile(r"`((?:tests|torch_s3dcp)/[\w/]+\.py)::([\w:]+)`")

# Lines are kept, so that a traceback points into the page.
_RUNNER = """
import json, sys
import __main__
for line, source in json.load(sys.stdin):
    exec(compile("\\n" * line + source, sys.argv[1], "exec"), vars(__main__))
"""


@dataclass(frozen=True)
class Block:
    """One example of a page."""

    line: int
    source: str
    title: str | None
    runs: bool


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [
        Block(text.count("\n", 0, m.start("source")), m["source"], m["title"], not m["skip"])
        for m in _BLOCK.finditer(text)
    ]
    assert len(found) == len(re.findall(r"^\s*```\s*(?:python|py)\b", text, re.MULTILINE)), (
        f"{page.name}: a python block is written in a way that this test does not see"
    )
    return found


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


WITH_EXAMPLES = [page for page in PAGES if blocks_of(page)]


@pytest.fixture
def environment(moto_server: MotoServer) -> Iterator[dict[str, str]]:
    """Variables of a process that finds an S3 server with one empty bucket."""
    moto_server.create_bucket(BUCKET)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    yield {**os.environ, **moto_server.environment(), "PYTHONPATH": path}
    moto_server.delete_bucket(BUCKET)


def run(
    command: list[str], folder: Path, environment: dict[str, str], *, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=name_of)
def test_examples_run(page: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    """All examples of a page, in order, in one fresh process and one namespace."""
    blocks = blocks_of(page)
    for block in blocks:
        compile(block.source, f"{page}:{block.line}", "exec")
        if block.title:
            (tmp_path / block.title).write_text(block.source, encoding="utf-8")
    plan = [(block.line, block.source) for block in blocks if block.runs]
    run(["-c", _RUNNER, str(page)], tmp_path, environment, stdin=json.dumps(plan))
    for suite in tmp_path.glob("test_*.py"):
        ending = run(["-m", "pytest", "-q", str(suite)], tmp_path, environment).stdout
        assert re.search(r"\b\d+ passed", ending), ending


def test_few_examples_are_left_out() -> None:
    left_out = [block for page in PAGES for block in blocks_of(page) if not block.runs]
    assert len(left_out) <= 2


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a broken link, or a page missing in the navigation, fails."""
    folder = tmp_path_factory.mktemp("site")
    command = ["-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    run(command, ROOT, dict(os.environ))
    return folder


def test_site_has_every_page(site: Path) -> None:
    for page in sorted(DOCS.rglob("*.md")):
        path = page.relative_to(DOCS).with_suffix("")
        folder = path.parent if path.name == "index" else path
        assert (site / folder / "index.html").is_file(), page


def test_site_asks_no_other_host(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:link|script|img)[^>]+(?:href|src)=\"?https?:", text), page


def test_readme_links_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_every_public_name_is_in_the_reference() -> None:
    text = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `(\w+)(?:\([^`]*\))?`", text, re.MULTILINE))
    assert set(torch_s3dcp.__all__) - named == set()


def test_floors_are_those_of_the_import_contract() -> None:
    """The picture shows the same rooms in the same order as the linter's contract."""
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    contract = re.search(r"^layers = \[(.*?)\]", settings, re.MULTILINE | re.DOTALL)
    picture = re.search(
        r"```text\n(.*?)```",
        (DOCS / "design" / "floors.md").read_text(encoding="utf-8"),
        re.DOTALL,
    )
    assert contract
    assert picture
    floors = [re.findall(r"\w+", layer) for layer in re.findall(r'"(.*?)"', contract[1])]
    drawn = [re.findall(r"\w+", floor) for floor in re.split(r"[─═]{5,}", picture[1])]
    assert len(drawn) == len(floors)
    assert [line[: len(rooms)] for line, rooms in zip(drawn, floors, strict=True)] == floors


@cache
def names_in(path: str) -> frozenset[str]:
    """Tests of a file as `name` or `Class::name`."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    found = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}::{part.name}"
                for part in node.body
                if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    return frozenset(found)


def test_every_cited_test_exists() -> None:
    cited = _CITATION.findall(MIGRATION.read_text(encoding="utf-8"))
    assert cited
    missing = [
        f"{path}::{name}"
        for path, name in cited
        if not (ROOT / path).is_file() or name not in names_in(path)
    ]
    assert missing == []


def test_every_row_of_the_contract_cites_a_test() -> None:
    text = MIGRATION.read_text(encoding="utf-8")
    contract = text[text.index("## The contract") : text.index("## Deliberate differences")]
    rows = [line for line in contract.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith(("| name", "| ---"))]
    assert len(rows) > 20
    assert [row for row in rows if not _CITATION.search(row)] == []


def test_changelog_tells_about_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{torch_s3dcp.__version__}]" in text
