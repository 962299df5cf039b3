"""Every method can learn one pair by heart."""

from __future__ import annotations

import cv2
import pytest

from samdeblur.train import TrainConfig, psnr, read_config, train

pytestmark = pytest.mark.usefixtures("quick_curves")


@pytest.mark.parametrize("method", ["none", "cat", "map", "map-dropout"])
def test_the_network_of_the_preset_tiny_learns_a_pair_by_heart(tmp_path, make_store, pair, method):
    _, sharp, masks = pair(3, 48, 48)
    blurred = cv2.blur(sharp, (5, 3))
    store = make_store(tmp_path / "one.zarr", {"x": (blurred, sharp, masks)})
    quick = {"steps": 150, "batch_size": 2, "crop_size": 48, "learning_rate": 8e-3, "val_every": 150, "device": "cpu"}
    config = TrainConfig.of(read_config("tiny") | quick | {"method": method})
    history = train(config, store, tmp_path / "run", validation=store)
    assert psnr(blurred, sharp) < 24
    assert history[-1]["val_psnr"] > 35
