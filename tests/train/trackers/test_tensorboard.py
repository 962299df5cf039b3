from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from samdeblur.train import ConfigError, train


def read_board(folder):
    """Scalars by name as (step, value), and the steps of images."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0}).Reload()
    scalars = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    return scalars, {name: [e.step for e in events.Images(name)] for name in events.Tags()["images"]}


def test_tensorboard_shows_the_rows_of_the_log_and_the_first_validation_image(store, small, tmp_path):
    history = train(replace(small, tensorboard=True), store, tmp_path)
    scalars, images = read_board(tmp_path)
    for name in ("loss", "learning_rate", "val_psnr", "val_ssim", "val_mcr", "samples_per_second", "loader_wait"):
        expected = [(row["step"], row[name]) for row in history if name in row]
        assert [step for step, _ in scalars[name]] == [step for step, _ in expected]
        assert np.allclose([value for _, value in scalars[name]], [value for _, value in expected], rtol=1e-6)
    assert list(images.values()) == [[0, 4, 8, 10]]


def test_a_resumed_run_goes_on_in_the_same_curves(store, small, tmp_path):
    config = replace(small, tensorboard=True)

    def interrupt(row):
        if row["step"] == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, store, tmp_path, progress=interrupt)
    history = train(config, store, tmp_path)
    scalars, _ = read_board(tmp_path)
    losses = dict(scalars["loss"])
    assert losses == pytest.approx({row["step"]: row["loss"] for row in history if "loss" in row}, rel=1e-6)


def test_without_tensorboard_the_command_that_installs_it_is_named(store, small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"tensorboard: not installed; pip install samdeblur\[tensorboard\]"):
        train(replace(small, tensorboard=True), store, tmp_path)
