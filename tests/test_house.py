"""The rooms stand as docs/architecture.md lists them, nothing imports from a room above its own, and
links of the docs lead somewhere."""

import ast
from pathlib import Path
import re

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "albef_jax"


def floors():
    """Name of a room or of a file at the root -> its row in the table, from the top."""
    rows = re.findall(r"^\| (`.+?`) \|", (ROOT / "docs" / "architecture.md").read_text(),
                      re.MULTILINE)
    return {re.sub(r"(/|\.py)$", "", name): floor
            for floor, row in enumerate(rows) for name in re.findall(r"`(.+?)`", row)}


def imported(path):
    """(line, room) of what a file imports from the package, inside of functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = ([f"albef_jax.{alias.name}" for alias in node.names]
                     if node.module == "albef_jax" else [node.module])
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from ((node.lineno, name.split(".")[1]) for name in names
                    if name.startswith("albef_jax."))


def test_every_room_has_a_row():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - {"__init__", "__pycache__"} == floors().keys()


@pytest.mark.parametrize("room", floors())
def test_nothing_imports_upward(room):
    floor = floors()
    files = [PACKAGE / f"{room}.py"] if (PACKAGE / f"{room}.py").exists() else [
        *(PACKAGE / room).rglob("*.py")]
    upward = [f"{path.relative_to(ROOT)}:{line} imports {other}" for path in files
              for line, other in imported(path) if floor[other] < floor[room]]
    assert files and not upward


def test_links_of_the_docs_lead_somewhere():
    """Files, and headings in them; addresses of other hosts are not asked."""
    broken = []
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for path, heading in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text()):
            there = page.parent / path if path else page
            if path.startswith("http"):
                continue
            if not there.exists() or (
                    heading and there.suffix == ".md" and heading not in headings(there)):
                broken.append(f"{page.relative_to(ROOT)}: {path}#{heading}")
    assert not broken


def headings(page):
    """The anchors that code hosts make of a page's headings."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
            for title in re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)}
