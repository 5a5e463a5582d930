"""The floor plan of docs/architecture.md, held by reading the imports of every file, also those within functions."""

import ast
import re

import pytest
from commands import REPOSITORY

SOURCE = REPOSITORY / "src" / "quintet"
PAPERS = {"wavenet", "deeplab", "show_and_tell", "rare_events", "influence"}
# what a room may import, besides itself
ROOMS = {
    "common": set(),
    "backbones": {"common"},
    "metrics": {"common"},
    "data": {"common", "backbones", "metrics"},
    "harness": {"common"},  # it builds models and data by their `_target_`
    "papers": {"common", "backbones", "metrics", "data", "harness"},
}
# parts of one paper that another one is built on
BETWEEN_PAPERS = {
    "show_and_tell": {"rare_events.memory"},  # a memory for rare words
    "influence": {"wavenet", "deeplab", "show_and_tell"},  # their last layers, sound and pictures
}
OLD_ROOMS = r"quintet[./](app|callbacks|models|protocols)\b|quintet\.(errors|compat|results|machine)\b"


def modules(root=SOURCE):
    """Dotted name below `root` -> file."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(text, known):
    """Names of `known` modules that a file's text imports."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {name.removeprefix("quintet.") for name in names if name.startswith("quintet.")} & known
    return found


def graph():
    known = modules()
    return {name: imports(path.read_text(), set(known)) - {name, ""} for name, path in known.items()}


def circle(arrows):
    """One circle of imports as a list of names, or None."""
    done, path = set(), []

    def visit(name):
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return None
        path.append(name)
        found = next(filter(None, map(visit, sorted(arrows.get(name, ())))), None)
        path.pop()
        done.add(name)
        return found

    return next(filter(None, map(visit, sorted(arrows))), None)


def trespasses(arrows):
    """(file, what it imports) of each import that the floor plan forbids."""
    found = []
    for name, targets in arrows.items():
        for target in targets:
            room, other = name.split(".")[0], target.split(".")[0]
            if room in ROOMS and other != room and other not in ROOMS[room]:
                found.append((name, target))
            if room == other == "papers" and target.count("."):
                paper, theirs = name.split(".")[1], target.split(".", 1)[1]
                allowed = (paper, *BETWEEN_PAPERS.get(paper, ()))
                if not any(theirs == part or theirs.startswith(f"{part}.") for part in allowed):
                    found.append((name, target))
    return found


def test_rooms():
    assert {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(ROOMS)
    papers = {path.name for path in (SOURCE / "papers").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert papers >= PAPERS
    for paper in papers:
        assert list((REPOSITORY / "conf" / "experiment" / paper).glob("*.yaml")), paper


def test_imports_run_in_no_circle():
    assert circle(graph()) is None


def test_imports_run_down_the_floors():
    assert trespasses(graph()) == []


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("common.errors", "data.batches"),
        ("backbones.pooled", "papers.wavenet.network"),
        ("data.batches", "papers.wavenet.network"),
        ("harness.cli", "papers.wavenet.module"),
        ("harness.cli", "data.batches"),
        ("papers.wavenet.network", "papers.influence.influence"),
        ("papers.wavenet.network", "papers.deeplab.network"),
        ("papers.show_and_tell.network", "papers.rare_events.module"),
    ],
)
def test_an_import_turned_round_is_found(name, target):
    arrows = graph()
    assert name in arrows and target in arrows
    arrows[name] |= {target}
    assert (name, target) in trespasses(arrows)


def test_a_circle_is_found():
    arrows = graph()
    arrows["common.errors"] |= {"data.batches"}
    arrows["data.batches"] |= {"common.errors"}
    found = circle(arrows)
    assert set(found) >= {"common.errors", "data.batches"}


def test_imports_are_read_in_every_form():
    text = (
        "import quintet.data.batches\nfrom quintet.common import errors\n"
        "def f():\n    from quintet.papers.wavenet.network import WaveNet\n"
    )
    assert imports(text, set(modules())) >= {"data.batches", "common.errors", "papers.wavenet.network"}


def test_no_file_names_a_room_of_the_first_plan():
    files = [path for room in ("src", "conf", "tests", "benchmarks") for path in (REPOSITORY / room).rglob("*.*")]
    files += (REPOSITORY / "docs").glob("*.md")
    files = [f for f in files if f.suffix in (".py", ".yaml", ".md") and f.name != "results.md"]
    exempt = {"moved.py", "test_earlier_runs.py", "test_architecture.py"}  # the alias of old names, and tests of it
    named = [
        f"{path.relative_to(REPOSITORY)}: {match[0]}"
        for path in files
        if path.name not in exempt
        for match in re.finditer(OLD_ROOMS, path.read_text(encoding="utf-8"))
    ]
    assert named == []
