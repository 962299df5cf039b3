"""What a run saves is whole and worth going on from, whatever happens to the disk or to the loss."""

from __future__ import annotations

import errno
import math
import os
import resource
from dataclasses import replace

import children
import numpy as np
import pytest
import torch

from samdeblur.models import load_network
from samdeblur.storage import files
from samdeblur.train import Diverged, running, state, train
from samdeblur.train.losses import LOSSES, charbonnier_loss, in_decibels, l1_loss, psnr_loss
from samdeblur.train.running import MEMORY, WORSE, LossWatch

pytestmark = pytest.mark.usefixtures("quick_curves")


@pytest.fixture(scope="module")
def uninterrupted(store, small, tmp_path_factory, contents):
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(small, store, folder)
    return contents(folder)


def state_of(folder):
    return torch.load(folder / "state.pt", weights_only=True)


# Full disks


@pytest.mark.parametrize("name", ["last.safetensors", "best.safetensors", "log.csv", "curves.png", "state.pt"])
def test_a_full_disk_leaves_the_state_before_and_names_the_file(
    store, small, tmp_path, uninterrupted, monkeypatch, assert_same_run, name
):
    durably = state.write_durably

    def full(path, data):
        if path.name == name and (tmp_path / "state.pt").exists():
            path.with_name(f"{name}.partial").write_bytes(bytes(data)[:100])
            with files.naming(path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # of a write: it has no name
        durably(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(state, "write_durably", full)
        with pytest.raises(OSError, match="No space left on device") as caught:
            train(small, store, tmp_path)
    assert caught.value.filename == str(tmp_path / name)
    assert state_of(tmp_path)["step"] == 0
    train(small, store, tmp_path)
    assert_same_run(tmp_path, uninterrupted)


def test_a_command_whose_state_outgrows_the_disk_fails_in_one_line_and_goes_on_later(
    small, command, tmp_path, uninterrupted, assert_same_run
):
    run = tmp_path / "run"
    with children.started(command(small, run), tmp_path / "said", before_step=1) as child:
        child.waits()
        room = (
            (run / "state.pt").stat().st_size * 3 // 2
        )  # with the averages of the optimiser it is three times as large
        resource.prlimit(child.process.pid, resource.RLIMIT_FSIZE, (room, room))
        child.goes_on()
        ended = child.end()
    assert (ended.code, ended.err.splitlines()) == (1, [f"error: {run / 'state.pt'}: {os.strerror(errno.EFBIG)}"])
    assert state_of(run)["step"] == 0
    with children.started(command(small, run), tmp_path / "said") as child:
        assert child.end().code == 0
    assert_same_run(run, uninterrupted)


# Weights that are kept


def test_weights_that_are_kept_are_those_of_their_steps(store, small, tmp_path):
    config = replace(small, keep_every=3, method="map")
    train(config, store, tmp_path)
    kept = {path.name: path for path in tmp_path.glob("step-*.safetensors")}
    assert sorted(kept) == ["step-3.safetensors", "step-6.safetensors", "step-9.safetensors"]

    class Enough(Exception):
        pass

    def stop(row):
        if row["step"] == 7:
            raise Enough

    with pytest.raises(Enough):
        train(config, store, tmp_path / "shorter", progress=stop)
    expected = state_of(tmp_path / "shorter")
    assert expected["step"] == 6
    found = load_network(kept["step-6.safetensors"]).state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in expected["network"].items())


# Divergence


def test_a_loss_that_falls_and_rises_a_little_is_no_divergence():
    watch = LossWatch()
    for step in range(1, 3000):
        loss = -20 - 10 * step / 3000 + 8 * (step % 2)
        assert watch.rise({"step": step, "loss": loss}, "psnr") < 6
    assert watch.rise({"step": 3000}, "psnr") == 0  # a validation alone


@pytest.mark.parametrize("every", [1, 10, 100])
def test_the_loss_is_judged_by_its_mean_over_some_hundred_steps_however_often_it_is_logged(every):
    """A step of height h is seen as h (1 - exp(-n / MEMORY)) after n steps."""
    watch, height = LossWatch(), 20.0
    for step in range(every, 1001, every):
        assert watch.rise({"step": step, "loss": -30.0}, "psnr") == 0
    for step in range(1000 + every, 2001, every):
        expected = height * (1 - math.exp(-(step - 1000) / MEMORY))
        assert watch.rise({"step": step, "loss": -30.0 + height}, "psnr") == pytest.approx(expected)


def test_ten_decibels_are_an_error_over_three_times_as_large_for_every_loss():
    sharp = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for name, loss in (("psnr", psnr_loss), ("l1", l1_loss), ("charbonnier", charbonnier_loss)):
        near, far = (in_decibels(name, loss(sharp + error, sharp).item()) for error in (0.1, 0.1 * math.sqrt(10)))
        assert far - near == pytest.approx(WORSE, abs=0.01), name
    assert math.isfinite(in_decibels("l1", 0.0))


def _rising_from(first, by):
    """The PSNR loss, raised by so many dB more at every step from one on; its gradient is what it was."""
    calls = []

    def rising(output, sharp):
        if torch.is_grad_enabled():
            calls.append(1)
        return psnr_loss(output, sharp) + by * max(0, len(calls) + 1 - first)

    return rising


def test_a_loss_that_slowly_rises_ends_the_run_and_its_state_goes_on(store, small, tmp_path, monkeypatch, contents):
    config = replace(small, steps=40, save_every=3, val_every=100)
    train(config, store, tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        patch.setattr(running, "MEMORY", 4)
        patch.setitem(LOSSES, "psnr", _rising_from(8, by=1.5))
        with pytest.raises(Diverged) as caught:
            train(config, store, tmp_path / "run")
    rows = [row for row in state_of(tmp_path / "undisturbed")["history"] if "loss" in row]
    losses = [row["loss"] + 1.5 * max(0, row["step"] - 7) for row in rows]
    means = [losses[0]]
    for loss in losses[1:]:
        means.append(means[-1] * math.exp(-1 / 4) + loss * (1 - math.exp(-1 / 4)))
    rises = np.array(means) - np.minimum.accumulate(means)
    step = int(np.argmax(rises > WORSE)) + 1
    saved = (step - 1) // 3 * 3
    assert 12 < step < 30
    assert str(caught.value).startswith(
        f"{tmp_path / 'run'}: the loss is {rises[step - 1]:.0f} dB above its best at step"
    )
    assert f"at step {step}; lower learning_rate or grad_clip" in str(caught.value)
    assert str(caught.value).endswith(f"The state of step {saved} is intact")
    assert state_of(tmp_path / "run")["step"] == saved
    train(config, store, tmp_path / "run")
    one, other = (load_network(tmp_path / name / "last.safetensors").state_dict() for name in ("run", "undisturbed"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", ["none", "map"])
@pytest.mark.parametrize("learning_rate", [1e10, 1e30])
def test_nothing_is_saved_of_weights_that_went_wild(store, small, tmp_path, contents, learning_rate, method):
    """After one step they are finite numbers."""
    wild = replace(small, method=method, learning_rate=learning_rate, grad_clip=0.0, save_every=1)
    with pytest.raises(Diverged, match=r"after an update at step 1; .*The state of step 0 is intact") as caught:
        train(wild, store, tmp_path)
    assert "\n" not in str(caught.value)
    found = contents(tmp_path)
    assert found["state.pt"]["step"] == 0
    assert found["initial.safetensors"] == found["last.safetensors"]
    assert "best.safetensors" not in found


def test_a_loss_that_is_no_number_between_rows_is_not_saved(store, small, tmp_path, monkeypatch):
    bad = iter([1, 1, 1, 1, 1, math.nan, 1, 1, 1, 1, 1])

    def spoiled(output, sharp):
        return psnr_loss(output, sharp) * (next(bad) if torch.is_grad_enabled() else 1)

    monkeypatch.setitem(LOSSES, "psnr", spoiled)
    with pytest.raises(Diverged, match=r"the loss is not a finite number at step 6; .*The state of step 4 is intact"):
        train(replace(small, log_every=100, save_every=2, val_every=4), store, tmp_path)
    assert all(torch.isfinite(weight).all() for weight in state_of(tmp_path)["network"].values())


def test_a_run_that_is_lost_before_its_first_state_says_so(store, small, tmp_path, monkeypatch):
    def gone(network, *_):
        raise running.NotFinite("the network gave values that are not finite")
        yield

    monkeypatch.setattr(running, "score_images", gone)
    with pytest.raises(Diverged, match=r"validation: .* at step 0; .*Nothing was saved yet"):
        train(small, store, tmp_path)
    assert not (tmp_path / "state.pt").exists()
