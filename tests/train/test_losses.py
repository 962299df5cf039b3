"""Losses, schedules, optimisers and phases, against formulations of their own."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve1d

from samdeblur.train import ConfigError, TrainConfig, train
from samdeblur.train.data.phases import Phases
from samdeblur.train.losses import edge_loss, fft_loss, in_decibels, loss_of, lpips_loss
from samdeblur.train.optimisers import OPTIMISERS, Lion
from samdeblur.train.schedules import learning_rate

pytestmark = pytest.mark.usefixtures("quick_curves")


@pytest.fixture
def two() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 12, 15, generator=generator), torch.rand(2, 3, 12, 15, generator=generator)


def test_the_fourier_loss_is_that_of_numpy(two):
    output, sharp = (image.double() for image in two)
    difference = np.fft.rfft2(output.numpy()) - np.fft.rfft2(sharp.numpy())
    expected = (np.abs(difference.real).mean() + np.abs(difference.imag).mean()) / 2
    assert fft_loss(output, sharp).item() == pytest.approx(expected, rel=1e-9)


def test_the_edge_loss_is_that_of_a_pyramid_by_scipy(two):
    def smooth(image):
        kernel = np.array([1, 5, 8, 5, 1]) / 20
        return convolve1d(convolve1d(image, kernel, 2, mode="nearest"), kernel, 3, mode="nearest")

    def finest(image):
        spread = np.zeros_like(image)
        spread[..., ::2, ::2] = smooth(image)[..., ::2, ::2] * 4
        return image - smooth(spread)

    output, sharp = (image.double() for image in two)
    expected = np.sqrt((finest(output.numpy()) - finest(sharp.numpy())) ** 2 + 1e-6).mean()
    assert edge_loss(output, sharp).item() == pytest.approx(expected, rel=1e-9)


def test_a_sum_of_losses_is_that_and_its_gradient_too(two):
    output, sharp = two
    leaf = output.clone().requires_grad_()
    loss = loss_of({"psnr": 2.0, "fft": 0.1}, leaf, sharp)
    loss.backward()
    apart = output.clone().requires_grad_()
    (2.0 * loss_of("psnr", apart, sharp) + 0.1 * loss_of("fft", apart, sharp)).backward()
    assert loss.item() == pytest.approx((2 * loss_of("psnr", output, sharp) + 0.1 * fft_loss(output, sharp)).item())
    torch.testing.assert_close(leaf.grad, apart.grad)


@pytest.mark.parametrize(
    "setting", ["mse", {"psnr": 1.0, "fft": 0.0001}, {"l1": 1, "edge": 0.05}, {"l1": 3.0}], ids=str
)
def test_ten_times_the_squared_error_are_ten_decibels_of_a_sum_too(setting):
    sharp = torch.zeros(1, 3, 16, 16)
    near, far = (in_decibels(setting, loss_of(setting, sharp + e, sharp).item()) for e in (0.1, 0.1 * math.sqrt(10)))
    assert far - near == pytest.approx(10, abs=0.1)


def test_a_perceptual_loss_that_is_not_there_says_what_to_do(two, monkeypatch):
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    import torchmetrics.functional.image.lpips as lpips

    def offline(*_, **__):
        raise OSError("no internet")

    monkeypatch.setattr(lpips, "_LPIPS", offline)
    with pytest.raises(ConfigError, match=r"loss lpips: the weights of VGG-16 could not be loaded \(no internet\)"):
        lpips_loss(*two)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ("pnsr", "loss: no 'pnsr'; did you mean psnr"),
        ({"psnr": 1, "fftt": 0.1}, "loss: no 'fftt'; did you mean fft"),
        ({"psnr": -1}, "weights above zero"),
        ({}, "weights above zero"),
        ({"psnr": "much"}, "loss.psnr: 'much' is not a number"),
        (["psnr"], r"loss: \['psnr'\] is not of type str"),
    ],
    ids=str,
)
def test_losses_that_cannot_be_are_refused(loss, words):
    with pytest.raises(ConfigError, match=words):
        TrainConfig.of({"loss": loss})


# Schedules


def rates(**settings):
    config = TrainConfig(**{"steps": 12, "learning_rate": 1.0, "min_learning_rate": 0.1} | settings)
    return [learning_rate(step, config) for step in range(config.steps)]


def torchs(make, n=12):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    scheduler, found = make(optimizer), []
    for _ in range(n):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return pytest.approx(found)


def test_restarts_are_torchs_warm_restarts():
    expected = torchs(lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 5, eta_min=0.1))
    assert rates(schedule="restarts", restart_steps=5) == expected


def test_linear_and_constant_are_torchs():
    assert rates(schedule="linear") == torchs(lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.1, total_iters=12))
    assert rates(schedule="constant") == [1.0] * 12


def test_a_warm_up_rises_to_the_schedule():
    plain, warm = rates(schedule="linear"), rates(schedule="linear", warmup_steps=3)
    assert warm[:3] == pytest.approx([rate * share for rate, share in zip(plain, (0.25, 0.5, 0.75), strict=False)])
    assert warm[3:] == plain[3:]


def test_a_schedule_of_its_own_length_stays_at_its_end():
    assert rates(schedule_steps=6)[:6] == rates(steps=6)
    assert rates(schedule_steps=6)[6:] == pytest.approx([0.1] * 6)
    assert rates(schedule_steps=24) == rates(steps=24)[:12]


@pytest.mark.parametrize("settings", [{"schedule": "constant"}, {"schedule_steps": 8}], ids=str)
def test_an_extended_run_is_bit_for_bit_the_one_that_was_asked_for_all_steps_at_once(settings, store, small, tmp_path):
    config = replace(small, steps=8, val_every=4, ema=0.9, **settings)
    train(replace(config, steps=4), store, tmp_path / "extended")
    train(config, store, tmp_path / "extended", extend=True)
    train(config, store, tmp_path / "straight")
    one, other = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("extended", "straight"))
    for part in ("network", "average", "optimizer"):
        torch.testing.assert_close(one[part], other[part], rtol=0, atol=0)
    assert [row.get("loss") for row in one["history"]] == [row.get("loss") for row in other["history"]]


# Optimisers


def test_lion_moves_as_its_paper_says():
    """Algorithm 2, written out for two numbers."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    lion = Lion([weight], lr=0.1, betas=(0.9, 0.99), weight_decay=0.5)
    expected, mean = np.array([1.0, -2.0]), np.zeros(2)
    for gradient in ([0.3, -1.0], [-3.0, 0.1], [0.01, -0.2]):
        weight.grad = torch.tensor(gradient, dtype=torch.float64)
        lion.step()
        g = np.array(gradient)
        expected = expected - 0.1 * (np.sign(0.9 * mean + 0.1 * g) + 0.5 * expected)
        mean = 0.99 * mean + 0.01 * g
        assert weight.detach().numpy() == pytest.approx(expected)


@pytest.mark.parametrize("name", [name for name in OPTIMISERS if name != "Muon"])
def test_every_optimiser_trains_and_goes_on_bit_for_bit(name, store, small, tmp_path):
    config = replace(small, steps=4, val_every=4, optimizer=name, learning_rate=1e-4, save_every=2)

    class Killed(BaseException):
        pass

    def kill(row):
        if row["step"] == 3:
            raise Killed

    with pytest.raises(Killed):
        train(config, store, tmp_path / "cut", progress=kill)
    train(config, store, tmp_path / "cut")
    train(config, store, tmp_path / "whole")
    one, other = (torch.load(tmp_path / run / "state.pt", weights_only=True)["network"] for run in ("cut", "whole"))
    assert all(torch.equal(one[key], other[key]) for key in other)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer": "adam"}, "optimizer: no 'adam'; did you mean Adam"),
        ({"optimizer": "SGD", "optimizer_options": {"momentun": 0.9}}, "SGD has no momentun; it has .*momentum"),
        ({"optimizer": "SGD", "optimizer_options": {"momentum": -1}}, "optimizer SGD: Invalid momentum"),
        ({"schedule": "restarts"}, "restart_steps"),
        ({"restart_steps": 3}, "restart_steps"),
        ({"progressive_steps": [2]}, "as many numbers each, not 1, 0, 0"),
        ({"progressive_steps": [10], "progressive_crops": [9], "progressive_batches": [2]}, "leaves none of the 10"),
        ({"progressive_steps": [2], "progressive_crops": [900], "progressive_batches": [2]}, "smaller than the crop"),
        (
            {"progressive_steps": [2], "progressive_crops": [9], "progressive_batches": [3], "accumulate": 2},
            "batch_size: 3 cannot be divided",
        ),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together_are_refused(settings, words, store, small, tmp_path):
    with pytest.raises(Exception, match=words) as caught:
        train(TrainConfig.of(small.plain() | settings), store, tmp_path)
    assert isinstance(caught.value, ValueError)


# Phases


def test_phases_know_the_sizes_of_every_step_and_sample():
    phases = Phases.of([3, 2], [8, 16, 24], [4, 2, 1])
    sizes = [(phases.at_step(step).crop_size, phases.at_step(step).batch_size) for step in range(1, 8)]
    assert sizes == [(8, 4)] * 3 + [(16, 2)] * 2 + [(24, 1)] * 2
    samples = [phases.first_sample(step) for step in range(1, 8)]
    assert samples == [0, 4, 8, 12, 14, 16, 17]
    assert [phases.at_sample(n).crop_size for n in (0, 11, 12, 15, 16, 99)] == [8, 8, 16, 16, 24, 24]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_with_growing_crops_goes_on_bit_for_bit_and_sees_each_size(workers, store, small, tmp_path, monkeypatch):
    config = replace(
        small, method="map-dropout", loader_workers=workers, save_every=1,
        progressive_steps=(3, 2), progressive_crops=(12, 16), progressive_batches=(4, 2),
    )  # fmt: skip
    from samdeblur.train import running

    seen, plain = [], running.Run.loss

    def note(run, network, batch):
        if torch.is_grad_enabled():
            seen.append((len(batch.blurred), batch.blurred.shape[-1]))
        return plain(run, network, batch)

    class Killed(BaseException):
        pass

    def kill(row):
        if row["step"] == 4:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(running.Run, "loss", note)
        train(config, store, tmp_path / "whole")
    assert seen == [(4, 12)] * 3 + [(2, 16)] * 2 + [(2, 24)] * 5
    with pytest.raises(Killed):
        train(config, store, tmp_path / "cut", progress=kill)
    train(replace(config, loader_workers=0), store, tmp_path / "cut")
    one, other = (torch.load(tmp_path / run / "state.pt", weights_only=True)["network"] for run in ("cut", "whole"))
    assert all(torch.equal(one[key], other[key]) for key in other)
