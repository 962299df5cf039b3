"""The drawing of docs/architecture.md, made from the imports. `python -m benchmarks.common.architecture` writes it.

Packages lie in layers, and each imports from those below it. In a package, a room imports from those at its right. An
arrow is left out where others lead the same way.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from html import escape

import grimp

from benchmarks.common.figures import IMAGES, ROOT

DRAWING = IMAGES / "architecture.svg"
PACKAGES = ("cli", "train", "evaluation", "pipeline", "models", "storage")
WIDTH, MARGIN, GAP = 860, 20, 30  # pixels
HEADER, ROOM_WIDTH, ROOM_STEP, ROOM_HEIGHT, ROOM_GAP = 44, 100, 170, 26, 12
STYLE = """
text { font-family: sans-serif; font-size: 13px; fill: #1d2733; }
.package { fill: #eef3f8; stroke: #5b7488; } .name { font-weight: bold; font-size: 15px; } .what { fill: #52616e; }
.room { fill: #fff; stroke: #8fa3b3; }
.arrow { stroke: #5b7488; stroke-width: 1.5; fill: none; marker-end: url(#head); }
"""

Graph = Mapping[str, frozenset[str]]  # name -> what it imports


def draw() -> str:
    """The drawing as SVG."""
    packages, rooms = read_imports()
    below = _reachable(packages)
    depths = _depths(packages)
    columns = _columns(below)
    parts, places, top = [], {}, MARGIN
    for depth in range(max(depths.values()), -1, -1):
        layer = [name for name in PACKAGES if depths[name] == depth]
        height = max(_height(rooms[name]) for name in layer)
        for name in layer:
            of = next((i for i, column in enumerate(columns) if name in column), None)
            width = WIDTH - 2 * MARGIN if of is None else (WIDTH - (len(columns) + 1) * MARGIN) / len(columns)
            left = MARGIN + (0 if of is None else of * (width + MARGIN))
            places[name] = (left, top, width, height)
            parts += _package(name, rooms[name], places[name])
        top += height + GAP
    for name, others in _reduced(packages).items():
        for other in sorted(others):
            parts.append(_down(places[name], places[other]))
    head = '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    head = f'<defs>{head}<path d="M0 0 L8 4 L0 8 z" fill="#5b7488"/></marker></defs>'
    size = f'width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}"'
    start = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<title>Packages, rooms and their imports</title>'
    sheet = '<rect width="100%" height="100%" fill="#fff"/>'
    return "\n".join([start, f"<style>{STYLE}</style>", head, sheet, *parts, "</svg>\n"])


def read_imports() -> tuple[Graph, Mapping[str, Graph]]:
    """What each package imports of the others, and in each package what each room imports of the other rooms."""
    graph = grimp.build_graph(*(f"samdeblur.{name}" for name in PACKAGES), cache_dir=None)
    inside = {name: sorted(path.parent.name for path in (ROOT / name).glob("*/__init__.py")) for name in PACKAGES}
    packages: dict[str, set[str]] = {name: set() for name in PACKAGES}
    rooms: dict[str, dict[str, set[str]]] = {name: {room: set() for room in inside[name]} for name in PACKAGES}
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            package, room, other, other_room = *_room_of(module), *_room_of(imported)
            if package != other:
                packages[package].add(other)
            elif room in rooms[package] and other_room in rooms[package] and room != other_room:
                rooms[package][room].add(other_room)
    frozen = {name: {room: frozenset(of) for room, of in found.items()} for name, found in rooms.items()}
    return {name: frozenset(of) for name, of in packages.items()}, frozen


def _room_of(module: str) -> tuple[str, str]:
    _, package, *rest = module.split(".")
    return package, rest[0] if rest else ""


def _reachable(graph: Graph) -> Graph:
    """Everything that each imports, directly or by way of others."""
    found: dict[str, frozenset[str]] = {}

    def of(name: str) -> frozenset[str]:
        if name not in found:
            found[name] = graph[name].union(*(of(other) for other in graph[name]))
        return found[name]

    return {name: of(name) for name in graph}


def _reduced(graph: Graph) -> Graph:
    """Without the imports that are also reached by way of others."""
    below = _reachable(graph)
    return {name: of - frozenset().union(*(below[other] for other in of)) for name, of in graph.items()}


def _depths(graph: Graph) -> dict[str, int]:
    """Steps to the bottom, by the longest way."""
    below = _reachable(graph)
    depths: dict[str, int] = {}
    for name in sorted(graph, key=lambda name: len(below[name])):
        depths[name] = 1 + max((depths[other] for other in graph[name]), default=-1)
    return depths


def _columns(below: Graph) -> list[list[str]]:
    """Packages that do not know of some other stand beside it; in one column those that know of each other."""

    def related(name: str, other: str) -> bool:
        return name == other or name in below[other] or other in below[name]

    columns: list[list[str]] = []
    for name in (name for name in PACKAGES if not all(related(name, other) for other in PACKAGES)):
        column = next((found for found in columns if all(related(name, other) for other in found)), None)
        columns.append([name]) if column is None else column.append(name)
    return columns


def _levels(rooms: Graph) -> list[list[str]]:
    depths = _depths(rooms)
    return [[room for room in rooms if depths[room] == depth] for depth in range(max(depths.values()), -1, -1)]


def _height(rooms: Graph) -> float:
    return HEADER + max(map(len, _levels(rooms))) * (ROOM_HEIGHT + ROOM_GAP) + 4


def _package(name: str, rooms: Graph, place: tuple[float, float, float, float]) -> Iterable[str]:
    left, top, width, height = place
    yield f'<rect class="package" x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}" rx="6"/>'
    yield f'<text class="name" x="{left + 14:g}" y="{top + 26:g}">{name}</text>'
    yield f'<text class="what" x="{left + 110:g}" y="{top + 26:g}">{escape(_what(name))}</text>'
    levels, corners = _levels(rooms), {}
    for number, level in enumerate(levels):
        for row, room in enumerate(level):
            corners[room] = (left + 14 + number * ROOM_STEP, top + HEADER + row * (ROOM_HEIGHT + ROOM_GAP))
    for room, others in _reduced(rooms).items():
        for other in sorted(others):
            (x, y), (to_x, to_y) = corners[room], corners[other]
            start = f"{x + ROOM_WIDTH:g} {y + ROOM_HEIGHT / 2:g}"
            yield f'<path class="arrow" d="M{start} L{to_x:g} {to_y + ROOM_HEIGHT / 2:g}"/>'
    for room, (x, y) in corners.items():
        yield f'<rect class="room" x="{x:g}" y="{y:g}" width="{ROOM_WIDTH}" height="{ROOM_HEIGHT}" rx="4"/>'
        yield f'<text x="{x + ROOM_WIDTH / 2:g}" y="{y + 18:g}" text-anchor="middle">{room}</text>'


def _what(package: str) -> str:
    """The first sentence of a package."""
    text = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))) or ""
    return re.split(r"[.:;](?:\s|$)", " ".join(text.split()))[0]


def _down(place: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> str:
    """An arrow from the lower side of a box to the upper side of one below it, where both are."""
    left, right = max(place[0], other[0]), min(place[0] + place[2], other[0] + other[2])
    x = (left + right) / 2
    return f'<path class="arrow" d="M{x:g} {place[1] + place[3]:g} L{x:g} {other[1]:g}"/>'


if __name__ == "__main__":
    DRAWING.write_text(draw(), encoding="utf-8")
    print(DRAWING)
