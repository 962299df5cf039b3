from __future__ import annotations

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from samdeblur.cli.train_sam import cli
from samdeblur.models import load_sam
from samdeblur.models.networks.sam import Calibration, SamConfig, build_small_sam, encode_sam
from samdeblur.pipeline import MaskGenerator
from samdeblur.train.sam.training import PHASES as SCHEDULE
from samdeblur.train.sam.training import Phase, scaled, train_sam

PHASES = (
    Phase(tokens=4, steps=2, batch=2, prompts=0, lr=1e-3, lr_end=1e-3, auxiliary=1.0),
    Phase(
        tokens=8,
        steps=3,
        batch=2,
        prompts=3,
        lr=1e-3,
        lr_end=1e-4,
        auxiliary=0.5,
        ranked=0.5,
        second_round=1.0,
    ),
)


def test_a_trained_model_loads_and_generates_masks(worlds, tiny, tmp_path):
    rows = []
    train_sam([worlds], tmp_path, tiny, PHASES, progress=rows.append)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert all(np.isfinite(row["loss"]) for row in rows)
    sam = load_sam(tmp_path / "sam.safetensors")
    loose = {"pred_iou_thresh": -1.0, "stability_score_thresh": 0.0, "points_per_side": 3}
    masks, records = MaskGenerator(sam, **loose).generate(worlds.image("sharp", worlds.keys[0]))
    assert masks.n_masks == len(records["predicted_iou"])


def test_training_lowers_the_loss(worlds, tiny, tmp_path):
    rows = []
    phases = (Phase(tokens=8, steps=60, batch=2, prompts=6, lr=3e-3, lr_end=1e-3, auxiliary=0.5, ranked=0.5),)
    train_sam([worlds], tmp_path, tiny, phases, progress=rows.append)
    first, last = (np.mean([row["loss"] for row in part]) for part in (rows[:10], rows[-10:]))
    assert last < 0.95 * first


def test_a_stopped_training_goes_on_to_the_same_weights(worlds, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("samdeblur.train.sam.training.SAVE_EVERY", 2)
    torch.set_num_threads(1)
    train_sam([worlds, worlds], tmp_path / "whole", tiny, PHASES)

    class Stop(Exception):
        pass

    def stop(row):
        if row["step"] == 4:
            raise Stop

    with pytest.raises(Stop):
        train_sam([worlds, worlds], tmp_path / "cut", tiny, PHASES, progress=stop)
    train_sam([worlds, worlds], tmp_path / "cut", tiny, PHASES)
    whole, cut = ((tmp_path / name / "sam.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


def test_a_training_begins_with_what_fits_of_other_weights(worlds, tiny, tmp_path):
    other = build_small_sam(SamConfig(64, 8, (4, 4, 8, 8), (1, 1, 1, 1), embed_dim=16, fused_depth=1, heads=2))
    still = (Phase(tokens=4, steps=1, batch=1, prompts=0, lr=0.0, lr_end=0.0, auxiliary=1.0),)
    sam = train_sam([worlds], tmp_path, tiny, still, weights=other.state_dict())
    state = sam.state_dict()
    assert torch.equal(state["image_encoder.stem.0.weight"], other.state_dict()["image_encoder.stem.0.weight"])
    assert state["mask_decoder.iou_token.weight"].shape == (1, 8)


def test_the_command_trains_on_several_stores(worlds, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("samdeblur.cli.train_sam.PHASES", PHASES[:1])
    monkeypatch.setattr("samdeblur.train.sam.training.MODEL", tiny)
    stores = [str(worlds.path), str(worlds.path)]
    arguments = [*stores, "--out", str(tmp_path / "one")]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert load_file(tmp_path / "one" / "sam.safetensors")


def test_a_schedule_in_fewer_steps_keeps_its_proportions():
    assert scaled(SCHEDULE, None) == SCHEDULE
    shorter = scaled(SCHEDULE, 283)
    assert [phase.steps for phase in shorter] == [3, 160, 120]
    assert [phase.lr for phase in shorter] == [phase.lr for phase in SCHEDULE]
    assert [phase.steps for phase in scaled(SCHEDULE, 280, trained=True)] == [160, 120]


def test_the_command_trains_on_what_was_calibrated_as_it_was_before(worlds, tiny, tmp_path, monkeypatch):
    model = build_small_sam(tiny)
    plain = tmp_path / "plain.safetensors"
    plain.write_bytes(encode_sam(model, tiny))
    done = Calibration(0.5, 0.25, 4.0)
    done.apply(model)
    calibrated = tmp_path / "calibrated.safetensors"
    calibrated.write_bytes(encode_sam(model, tiny, done))
    before, after = load_sam(plain).state_dict(), load_sam(calibrated, calibrated=False).state_dict()
    assert not torch.equal(before[last := "mask_decoder.iou_prediction_head.layers.2.bias"], model.state_dict()[last])
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor)

    monkeypatch.setattr("samdeblur.cli.train_sam.PHASES", PHASES)
    monkeypatch.setattr("samdeblur.train.sam.training.MODEL", tiny)
    options = ["--weights", str(calibrated), "--steps", "1", "--out", str(tmp_path / "run")]
    ended = CliRunner().invoke(cli, [str(worlds.path), *options], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    trained = load_file(tmp_path / "run" / "sam.safetensors")
    # One step at a low rate moves no weight far from where the first training left it.
    assert all(torch.allclose(trained[name], before[name], atol=0.01) for name in trained)
