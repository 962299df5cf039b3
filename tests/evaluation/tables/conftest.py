from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from samdeblur.evaluation.tables import published


@pytest.fixture
def small_paper(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """(images): as if the sets of the paper had so many, so that small results stand beside published rows."""

    def patch(images: int) -> None:
        sets = {key: replace(of_paper, images=images) for key, of_paper in published.SETS.items()}
        monkeypatch.setattr(published, "SETS", sets)

    return patch
