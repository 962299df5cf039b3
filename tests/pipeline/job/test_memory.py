"""Images that do not fit into the memory of a worker."""

from __future__ import annotations

import numpy as np
import pytest

from samdeblur.models.inference.memory import bytes_per_pixel
from samdeblur.models.networks.nafnet import NAFNet
from samdeblur.models.priors.attach import Deblurrer
from samdeblur.pipeline import PrepSettings, open_source, prepare
from samdeblur.pipeline.job import memory
from samdeblur.pipeline.job.memory import bytes_left, require_room
from samdeblur.pipeline.job.recipe import Stages
from samdeblur.pipeline.segmenters.superpixels import SuperpixelSegmenter
from samdeblur.pipeline.sources.base import BadImage

IMAGE = np.zeros((40, 50, 3), np.uint8)


@pytest.mark.parametrize("left", [None, 130 * 2000, 130 * 2000 - 1])
def test_what_a_segmenter_takes_is_held_against_what_is_left(monkeypatch, left):
    monkeypatch.setattr(memory, "bytes_left", lambda: left)
    stages = Stages(None, SuperpixelSegmenter())
    if left == 130 * 2000 - 1:
        with pytest.raises(BadImage, match=r"50x40 pixels: finding its masks takes about .*--memory-limit"):
            require_room(IMAGE, stages)
    else:
        require_room(IMAGE, stages)


def test_so_is_what_a_network_takes_where_that_is_more(monkeypatch):
    network = Deblurrer(NAFNet(width=16, enc_blk_nums=[1], middle_blk_num=1, dec_blk_nums=[1]), None)
    takes = bytes_per_pixel(network) * 2000
    assert takes > 130 * 2000
    monkeypatch.setattr(memory, "bytes_left", lambda: int(takes) - 1)
    with pytest.raises(BadImage, match="pre-deblurring it"):
        require_room(IMAGE, Stages(network, SuperpixelSegmenter()))


def test_a_process_of_its_own_has_what_the_machine_has():
    left = bytes_left()
    assert left is None or left > 0


def test_only_the_image_that_is_too_large_is_quarantined_and_tried_again_later(tmp_path, write_pairs, monkeypatch):
    folder = write_pairs(tmp_path / "toy", {"a": (24, 30), "large": (60, 80), "c": (24, 30)})
    source, settings = open_source(str(folder), "test"), PrepSettings(device="cpu")
    monkeypatch.setattr(memory, "bytes_left", lambda: 130 * 60 * 80 - 1)
    summary = prepare(source, tmp_path / "toy.zarr", settings, workers=1)
    assert (summary.images, summary.quarantined) == (3, 1)
    monkeypatch.undo()
    again = prepare(source, tmp_path / "toy.zarr", settings, workers=1, retry=True)
    assert again.quarantined == 0
