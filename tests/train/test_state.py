from __future__ import annotations

import io
import math

import numpy as np
import pytest
from PIL import Image

from samdeblur.models import CheckpointError
from samdeblur.train.state import best_step, draw_curves, run_weights

HISTORY = [
    {"step": 0, "val_psnr": 20.0},
    {"step": 1, "loss": -21.0},
    {"step": 2, "loss": -22.0, "val_psnr": 25.0},
    {"step": 3, "loss": -23.0},
    {"step": 4, "loss": -24.0, "val_psnr": 25.0},
    {"step": 5, "loss": -24.5, "val_psnr": 21.0},
]


def drawn(history):
    image = Image.open(io.BytesIO(draw_curves(history)))
    assert image.format == "PNG"
    return np.array(image.convert("L"))


def _exchanged(name, one, other):
    values = {one: HISTORY[other][name], other: HISTORY[one][name]}
    return [row | ({name: values[row["step"]]} if row["step"] in values else {}) for row in HISTORY]


def test_curves_are_drawn_of_loss_on_the_left_and_validation_on_the_right():
    one = drawn(HISTORY)
    other_loss = drawn(_exchanged("loss", 1, 3))  # the same range, so axes stay where they are
    other_validation = drawn(_exchanged("val_psnr", 0, 5))
    half = one.shape[1] // 2
    assert np.array_equal(one[:, half:], other_loss[:, half:])
    assert not np.array_equal(one[:, :half], other_loss[:, :half])
    assert np.array_equal(one[:, :half], other_validation[:, :half])
    assert not np.array_equal(one[:, half:], other_validation[:, half:])


@pytest.mark.parametrize("history", [HISTORY[:1], [], [{"step": 0, "val_psnr": math.inf}, HISTORY[1]]], ids=len)
def test_curves_are_drawn_of_a_run_that_has_only_begun(history):
    assert drawn(history).shape == drawn(HISTORY).shape


def test_the_best_step_is_that_of_the_highest_validation_the_last_of_equals():
    assert best_step(HISTORY) == 4
    assert best_step(HISTORY[:3]) == 2
    assert best_step(HISTORY[:1]) is None  # untrained weights are nobody's best, however well they do


@pytest.mark.parametrize("which", ["best", "last", "initial"])
def test_weights_of_a_run_are_found_by_name_and_a_file_stands_for_itself(tmp_path, which):
    path = tmp_path / f"{which}.safetensors"
    path.write_bytes(b"")
    assert run_weights(tmp_path, which) == path
    assert run_weights(path, "best") == path


def test_weights_of_no_run_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such run or checkpoint"):
        run_weights(tmp_path / "gone", "best")
    with pytest.raises(CheckpointError, match=r"no best\.safetensors; is this the folder of a training run\?"):
        run_weights(tmp_path, "best")
