"""The drawing of the packages, which is made from their imports."""

from xml.etree import ElementTree

from benchmarks.common.architecture import DRAWING, _depths, _reduced, draw, read_imports


def test_the_drawing_shows_the_imports_of_today():
    assert DRAWING.read_text(encoding="utf-8") == draw(), "run python -m benchmarks.common.architecture"


def test_it_is_a_drawing_of_every_package_and_room():
    packages, rooms = read_imports()
    names = [element.text for element in ElementTree.fromstring(draw()).iter("{http://www.w3.org/2000/svg}text")]
    assert {*packages, *(room for inside in rooms.values() for room in inside)} <= set(names)
    assert packages["storage"] == frozenset()
    assert {"evaluation", "pipeline"} <= packages["cli"]
    assert "pipeline" not in packages["train"]


def test_arrows_that_follow_from_others_are_left_out():
    graph = {"a": frozenset("bcd"), "b": frozenset("cd"), "c": frozenset(), "d": frozenset()}
    assert _reduced(graph) == {"a": frozenset("b"), "b": frozenset("cd"), "c": frozenset(), "d": frozenset()}
    assert _depths(graph) == {"a": 2, "b": 1, "c": 0, "d": 0}
