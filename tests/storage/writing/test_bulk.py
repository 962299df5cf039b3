import numpy as np
import pytest

from samdeblur.storage.format.layout import CHUNK, MAX_PIXELS
from samdeblur.storage.writing.bulk import fitting


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([(720, 1280)] * 3, [True] * 3),
        ([(720, 1280), (32767, 10), (10, 32767)], [True, False, True]),
        ([(720, 1280), (32767, 10), (32766, 9), (10, 32767)], [True, True, True, False]),
        ([(0, 0), (32767, 10), (10, 32767), (0, 0)], None),
        ([(0, 0)], [True]),
    ],
)
def test_as_many_images_as_can_lie_together_are_kept(shapes, expected):
    kept = fitting(np.array(shapes, np.int32))
    height, width = (-(-side // CHUNK) * CHUNK for side in np.array(shapes)[kept].max(axis=0).tolist())
    assert height * width <= MAX_PIXELS
    if expected is None:
        assert kept.sum() == 3
    else:
        assert kept.sum() == sum(expected)
