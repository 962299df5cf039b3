from __future__ import annotations

import sys

import pytest

from samdeblur.storage.own_code import CodeError, load_code

MODULE = """
class Maker:
    @staticmethod
    def make(): return 7
def __getattr__(name):
    if name == "lazy":
        raise RuntimeError("its library is gone")
    raise AttributeError(name)
"""


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    files = {"mine": MODULE, "needy": "import no_such_thing_here", "broken": "1 / 0", "crooked": "def (:"}
    for name, text in files.items():
        (tmp_path / f"{name}_for_test.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in files:
        sys.modules.pop(f"{name}_for_test", None)


def test_a_thing_is_found_however_deep_it_lies():
    assert load_code("mine_for_test:Maker.make")() == 7
    assert load_code("os.path:join") is __import__("os").path.join


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_package.part:make", "no module 'no_such_package'; install it, or put its folder on PYTHONPATH"),
        ("os.no_such_part:make", "no module 'os.no_such_part'; install it"),
        ("needy_for_test:make", "it needs the module 'no_such_thing_here', which is not installed"),
        ("broken_for_test:make", r"cannot be imported \(ZeroDivisionError: "),
        ("crooked_for_test:make", r"cannot be imported \(SyntaxError: "),
        ("mine_for_test:Makr", "no 'Makr' in it; did you mean Maker?"),
        ("mine_for_test:Maker.mke", "no 'mke' in it; did you mean make?"),
        ("mine_for_test:lazy", "its library is gone"),
        ("mine_for_test:", "no '' in it"),
        ("mine_for_test", "no '' in it"),
        (":make", "cannot be imported"),
        (".relative:make", "cannot be imported"),
    ],
)
def test_what_is_not_there_is_said_in_a_line(name, words):
    with pytest.raises(CodeError, match=words) as caught:
        load_code(name)
    assert "\n" not in str(caught.value)
