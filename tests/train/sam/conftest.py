from __future__ import annotations

import pytest

from samdeblur.models.networks.sam import SamConfig
from samdeblur.pipeline import PrepSettings, open_source, prepare
from samdeblur.storage import open_store


@pytest.fixture(scope="session")
def tiny():
    return SamConfig(64, 8, (4, 4, 8, 8), (1, 1, 1, 1), embed_dim=8, fused_depth=1, heads=2, mlp_dim=16)


@pytest.fixture(scope="session")
def worlds(tmp_path_factory):
    path = tmp_path_factory.mktemp("worlds") / "w.zarr"
    prepare(open_source("worlds:4:96", "train"), path, PrepSettings(true_masks=True, device="cpu"), workers=1)
    return open_store(path)
