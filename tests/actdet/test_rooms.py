"""The rooms of the package stand on each other, and none stands on one above it.

A room is a folder of `actdet`, or a module at its top. `__init__.py` and `api.py` are none: they show what is in the
rooms to people who write Python, and import it only once it is asked for.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

import actdet

PACKAGE = Path(actdet.__file__).parent
NO_ROOMS = {"__init__", "api"}

# Modules on which everything may stand, since they themselves stand on nothing but `errors`.
TOOLS = {"bounds", "detections", "device", "distributed", "errors", "files", "wording", "workers"}

# What each room may import besides the tools, from the bottom to the top.
MAY_IMPORT = {
    "video": set(),
    "data": {"video"},
    "pictures": {"video"},
    "models": {"data"},
    "run_log": set(),
    "run_folder": {"pictures", "run_log"},
    "evaluation": {"data", "models", "pictures", "run_folder", "run_log", "video"},
    "training": {"data", "evaluation", "models", "run_folder", "run_log", "video"},
    "synthetic": {"data"},
    "prediction": {"data", "evaluation", "models", "pictures", "synthetic", "video"},
    "cli": {
        "data",
        "evaluation",
        "models",
        "pictures",
        "prediction",
        "run_log",
        "synthetic",
        "training",
        "video",
    },
    "__main__": {"cli"},
}

# By room, what it imports, and by that the places where it does.
Arrows = dict[str, dict[str, list[str]]]


def room_of(path: Path) -> str:
    """The room of a file, whose path begins in the package."""
    return path.parts[0].removesuffix(".py")


def imported_modules(source: str) -> Iterator[str]:
    """Yield the modules that a source imports, at the top, in functions, and for type checkers only."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import, of which this test cannot tell what it imports"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def find_arrows(package: Path) -> Arrows:
    """Find which room imports which others."""
    paths = sorted(path.relative_to(package) for path in package.rglob("*.py"))
    arrows: Arrows = {room_of(path): {} for path in paths if room_of(path) not in NO_ROOMS}
    for path in paths:
        if room_of(path) in NO_ROOMS:
            continue
        for module in imported_modules((package / path).read_text()):
            names = module.split(".")
            is_ours = names[0] == "actdet" and len(names) > 1
            if is_ours and names[1] in arrows.keys() - {room_of(path)}:
                arrows[room_of(path)].setdefault(names[1], []).append(f"{path} imports {module}")
    return arrows


def find_circle(arrows: Arrows) -> str:
    """Describe a circle of rooms; an empty text if there is none."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        circle = error.args[1][::-1]
        places = [arrows[room][imported][0] for room, imported in pairwise(circle)]
        return f"{' -> '.join(circle)}: {'; '.join(places)}"
    return ""


ARROWS = find_arrows(PACKAGE)


def test_no_circle() -> None:
    circle = find_circle(ARROWS)
    assert not circle, circle


def test_each_room_is_in_the_table() -> None:
    assert ARROWS.keys() == MAY_IMPORT.keys() | TOOLS


@pytest.mark.parametrize("room", sorted(ARROWS))
def test_a_room_imports_only_what_it_may(room: str) -> None:
    allowed = {"errors"} if room in TOOLS else MAY_IMPORT.get(room, set()) | TOOLS
    others = {imported: places for imported, places in ARROWS[room].items() if imported not in allowed}
    assert not others, f"{room} may not import {others}"


def test_every_kind_of_import_is_seen() -> None:
    source = "import actdet.models\ndef f():\n    from actdet.training import config\nfrom actdet import cli\n"
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from actdet.data.index import Clip\n"
    assert list(imported_modules(source)) == ["actdet.models", "actdet.cli", "actdet.training.config"]
    assert list(imported_modules(typed)) == ["typing.TYPE_CHECKING", "actdet.data.index.Clip"]


def test_a_circle_is_named(tmp_path: Path) -> None:
    """Of three rooms and two kinds of import; a room that imports itself is no circle, nor is what `api` imports."""
    sources = {
        "api.py": "import actdet.low",
        "low/a.py": "import actdet.low.b\nimport actdet.api",
        "low/b.py": "def f():\n    from actdet import tool",
        "tool.py": "from actdet.high.c import x",
        "high/c.py": "",
    }
    for name, source in sources.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    assert find_circle(find_arrows(tmp_path)) == ""

    (tmp_path / "high" / "c.py").write_text("if TYPE_CHECKING:\n    import actdet.low.a")
    circle = find_circle(find_arrows(tmp_path))
    path, _, places = circle.partition(": ")
    rooms = path.split(" -> ")
    assert rooms[0] == rooms[-1]
    assert set(pairwise(rooms)) == {("low", "tool"), ("tool", "high"), ("high", "low")}
    assert set(places.split("; ")) == {
        "low/b.py imports actdet.tool",
        "tool.py imports actdet.high.c.x",
        "high/c.py imports actdet.low.a",
    }
