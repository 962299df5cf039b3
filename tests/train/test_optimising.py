"""How steps are taken: parts of a batch, averages of weights, losses, precisions, layouts, compilation, freezing."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

from samdeblur.models import load_network
from samdeblur.train import Stopped, build_network, running, score_images, train
from samdeblur.train.losses import LOSSES

pytestmark = pytest.mark.usefixtures("quick_curves")


@pytest.fixture
def steps(monkeypatch):
    """The state dict of the network after each step, and the runs they are of."""
    take_step, found = running.Run.take_step, []

    def noted(run, *arguments):
        take_step(run, *arguments)
        found.append((run, {name: weight.clone() for name, weight in run.network.state_dict().items()}))

    monkeypatch.setattr(running.Run, "take_step", noted)
    return found


def losses_of(history):
    return [row["loss"] for row in history if "loss" in row]


# Parts of a batch


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "lpips"])  # which fetches a network
def test_a_batch_in_parts_is_the_batch(store, small, tmp_path, parts, loss):
    whole = replace(small, method="map-dropout", batch_size=4, steps=6, precision="float64", loss=loss)
    one, other = train(whole, store, tmp_path / "1"), train(replace(whole, accumulate=parts), store, tmp_path / "n")
    assert losses_of(other) == pytest.approx(losses_of(one), rel=1e-9)
    assert [row.get("val_psnr") for row in other] == [row.get("val_psnr") for row in one]
    one, other = (torch.load(tmp_path / name / "state.pt", weights_only=True)["network"] for name in ("1", "n"))
    torch.testing.assert_close(other, one, rtol=1e-7, atol=1e-9)


# Averages of weights


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_the_average_of_weights_is_validated_and_saved_and_the_weights_are_gone_on_with(
    store, small, tmp_path, steps, decay
):
    history = train(replace(small, method="map", ema=decay, learning_rate=1e-2), store, tmp_path)
    weights = [state for _, state in steps]
    averages = [weights[0]]
    for now in weights[1:]:
        averages.append({name: decay * averages[-1][name] + (1 - decay) * now[name] for name in now})
    best = max((row for row in history if "val_psnr" in row), key=lambda row: (row["val_psnr"], row["step"]))["step"]
    assert best > 0
    for name, step in (("last", 10), ("best", best)):
        found = load_network(tmp_path / f"{name}.safetensors").state_dict()
        torch.testing.assert_close(found, averages[step - 1], rtol=1e-5, atol=1e-7)
        assert any((found[key] - weights[step - 1][key]).abs().max() > 1e-3 for key in found)
    raw = torch.load(tmp_path / "state.pt", weights_only=True)["network"]
    assert all(torch.equal(raw[name], weights[-1][name]) for name in raw)
    images = json.loads((tmp_path / "run.json").read_text())["validation"]["images"]
    scores = [s.metrics["psnr"] for s, _ in score_images(load_network(tmp_path / "last.safetensors"), store, images)]
    assert history[-1]["val_psnr"] == pytest.approx(np.mean(scores), abs=1e-6)


# Losses


def _charbonnier(difference):
    return np.mean(np.sqrt(difference**2 + 1e-6))


@pytest.mark.parametrize(
    ("name", "expected"), [("l1", lambda difference: np.mean(np.abs(difference))), ("charbonnier", _charbonnier)]
)
def test_losses_are_their_formulas(name, expected):
    output, sharp = np.random.default_rng(0).random((2, 3, 3, 9, 7))
    output[0] = sharp[0]  # a perfect image, where sqrt and abs have no slope
    leaf = torch.from_numpy(output).requires_grad_()
    loss = LOSSES[name](leaf, torch.from_numpy(sharp))
    loss.backward()
    assert loss.item() == pytest.approx(expected(output - sharp), rel=1e-12)
    assert torch.isfinite(leaf.grad).all()
    step = 1e-6 * np.random.default_rng(1).standard_normal(output.shape)
    step[0] = 0
    slope = (expected(output + step - sharp) - expected(output - step - sharp)) / 2
    assert (leaf.grad.numpy() * step).sum() == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("loss", ["l1", "charbonnier"])
def test_training_lowers_the_loss_that_is_asked_for(store, small, tmp_path, loss):
    fast = replace(
        small, loss=loss, learning_rate=1e-2, batch_size=4, log_every=10, val_every=40, steps=40, grad_clip=1.0
    )
    history = train(fast, store, tmp_path)
    found = losses_of(history)
    assert 0 < found[-1] < 0.6 * found[0]
    assert history[-1]["val_psnr"] > history[0]["val_psnr"] + 3


# Precisions, layouts, compilation


@pytest.mark.parametrize(("precision", "near"), [("bfloat16", 0.1), ("float16", 0.02), ("float64", 1e-4)])
@pytest.mark.parametrize("method", ["map-dropout", "cat"])
def test_other_precisions_stay_near_float32(store, small, tmp_path, steps, monkeypatch, method, precision, near):
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=256.0))
    config = replace(small, method=method, batch_size=4, learning_rate=1e-2)
    expected = losses_of(train(config, store, tmp_path / "float32"))
    found = losses_of(train(replace(config, precision=precision), store, tmp_path / precision))
    assert found != expected
    assert found == pytest.approx(expected, abs=near)
    kept = torch.float64 if precision == "float64" else torch.float32
    assert {weight.dtype for weight in steps[-1][1].values()} == {kept}
    assert load_network(tmp_path / precision / "last.safetensors").network.intro.weight.dtype == torch.float32


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "float64"])
def test_a_run_in_another_precision_goes_on_as_if_it_had_not_been_stopped(
    store, small, tmp_path, contents, assert_same_run, monkeypatch, precision
):
    config = replace(small, method="map-dropout", precision=precision, steps=6, channels_last=True)
    train(config, store, tmp_path / "undisturbed")

    class Killed(BaseException):
        pass

    def kill(row):
        if row["step"] == 5:
            raise Killed

    with pytest.raises(Killed):
        train(config, store, tmp_path / "run", progress=kill)
    train(config, store, tmp_path / "run")
    assert_same_run(tmp_path / "run", contents(tmp_path / "undisturbed"))


def test_steps_whose_gradient_overflows_in_float16_are_left_out_and_the_scale_halved(store, small, tmp_path, steps):
    """A scale that is found too large at the start of a run."""
    train(replace(small, precision="float16"), store, tmp_path)
    states = [build_network(small).state_dict(), *(state for _, state in steps)]
    moved = [any(not torch.equal(one[name], other[name]) for name in one) for one, other in pairwise(states)]
    left_out = moved.index(True)
    assert 0 < left_out < 5
    assert all(moved[left_out:])
    assert steps[-1][0].scaler.get_scale() == 2.0 ** (16 - left_out)


def test_channels_last_gives_the_same_but_for_rounding(store, small, tmp_path, steps):
    config = replace(small, method="map-dropout", batch_size=4)
    expected = losses_of(train(config, store, tmp_path / "rows"))
    found = losses_of(train(replace(config, channels_last=True), store, tmp_path / "channels"))
    assert found == pytest.approx(expected, abs=1e-3)
    run = steps[-1][0]
    assert run.network.network.intro.weight.is_contiguous(memory_format=torch.channels_last)
    one, other = (load_network(tmp_path / name / "initial.safetensors").state_dict() for name in ("rows", "channels"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("method", ["none", "map-dropout"])
def test_a_compiled_network_gives_the_same_and_is_compiled_once_for_any_number_of_masks(
    small, tmp_path, monkeypatch, make_store, pair, method
):
    """With the compiler of torch up to where it writes machine code, for which a test machine may have no tools."""
    images = {}
    for number in range(4):
        blurred, sharp, masks = pair(number, 30, 40)
        images[f"{number}"] = (blurred, sharp, masks[: 2 * number])
    store = make_store(tmp_path / "many.zarr", images)
    config = replace(small, method=method, steps=5, val_every=100)
    expected = losses_of(train(config, store, tmp_path / "eager"))
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    found = losses_of(train(replace(config, compile=True), store, tmp_path / "compiled"))
    assert found == pytest.approx(expected, abs=1e-3)
    assert 1 <= len(graphs) <= 2  # two where the prior parts them


# Freezing


@pytest.mark.parametrize("method", ["map", "cat"])
def test_a_frozen_backbone_stays_as_it_was_while_the_prior_is_trained(store, small, tmp_path, steps, method):
    config = replace(small, method=method, freeze_backbone=3, steps=5)
    start = build_network(config)
    backbone = {f"network.{name}" for name, _ in start.network.named_parameters()}
    train(config, store, tmp_path)
    before = {name: weight.clone() for name, weight in start.state_dict().items()}
    for step, (_, after) in enumerate(steps, 1):
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        priors = moved - backbone
        assert priors == set(before) - backbone, step
        assert bool(moved & backbone) == (step > 3), step
        before = after


def test_a_stop_while_the_backbone_is_frozen_changes_nothing(small, assert_stop_changes_nothing):
    config = replace(small, method="map-dropout", freeze_backbone=5, ema=0.9)
    assert_stop_changes_nothing(config)


# Other devices


@pytest.mark.parametrize("precision", ["float16", "float32"])
@pytest.mark.parametrize("fused_first", [False, True])
def test_a_run_goes_on_with_the_kernels_of_the_device_it_is_on(
    store, small, tmp_path, monkeypatch, precision, fused_first
):
    """A run begun on a CPU goes on on a GPU, whose AdamW is fused, and the other way round."""
    adam = torch.optim.AdamW

    def on(fused):
        monkeypatch.setattr(torch.optim, "AdamW", lambda *a, **options: adam(*a, **(options | {"fused": fused})))

    config = replace(small, method="map", precision=precision, steps=6, learning_rate=1e-2)

    def stop(row):
        if row["step"] == 3:
            signal.raise_signal(signal.SIGTERM)

    expected = losses_of(train(config, store, tmp_path / "undisturbed"))
    on(fused_first)
    with pytest.raises(Stopped):
        train(config, store, tmp_path / "run", progress=stop)
    on(not fused_first)
    assert losses_of(train(config, store, tmp_path / "run")) == pytest.approx(expected, rel=1e-3)
    groups = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["optimizer"]["param_groups"]
    assert [group["fused"] for group in groups] == [not fused_first]
