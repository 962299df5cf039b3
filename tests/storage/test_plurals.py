from __future__ import annotations

import pytest

from samdeblur.storage.plurals import counted


@pytest.mark.parametrize(
    ("number", "things", "said"),
    [(0, "", "0 images"), (1, "", "1 image"), (2, "", "2 images"), (1111, "", "1,111 images"), (2, "oxen", "2 oxen")],
)
def test_numbers_of_things(number, things, said):
    assert counted(number, "image", things) == said
