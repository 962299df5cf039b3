from __future__ import annotations

import json
import math
import random
from dataclasses import asdict, replace
from importlib import metadata

import cv2
import numpy as np
import pytest
import torch
import yaml

from samdeblur.models import load_network
from samdeblur.storage import AtomMap, MaskStore, StoreError, open_store
from samdeblur.train import (
    ConfigError,
    Diverged,
    TrainConfig,
    build_network,
    loop,
    psnr,
    running,
    score_images,
    state,
    train,
)
from samdeblur.train.losses import LOSSES, psnr_loss
from samdeblur.train.schedules import learning_rate
from samdeblur.train.start import split_images

pytestmark = pytest.mark.usefixtures("quick_curves")


class Killed(BaseException):
    """Stands for a kill: nothing that handles errors handles this."""


@pytest.fixture(scope="module")
def uninterrupted(store, small, tmp_path_factory, contents):
    """The files of a run that was left alone, by method; made once."""
    made = {}

    def of(method):
        if method not in made:
            folder = tmp_path_factory.mktemp("uninterrupted") / method
            train(replace(small, method=method), store, folder)
            made[method] = contents(folder)
        return made[method]

    return of


@pytest.mark.parametrize("steps", [1, 10, 1000])
def test_the_learning_rate_is_torchs_cosine(steps):
    config = TrainConfig(steps=steps, learning_rate=1e-3, min_learning_rate=1e-6)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=1e-6)
    for step in range(steps + 1):
        assert learning_rate(step, config) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6, abs=1e-12)
        optimizer.step()
        cosine.step()
    assert learning_rate(0, config) == 1e-3
    assert learning_rate(steps, config) == pytest.approx(1e-6)


def test_the_loss_is_minus_psnr_averaged_over_images():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 20, 24, 3), np.uint8)
    images[1, 0] = images[0, 0] // 2 + 64  # PSNRs that differ
    one, other = (torch.from_numpy(part).permute(0, 3, 1, 2) / 255 for part in images)
    expected = -np.mean([psnr(a, b) for a, b in zip(*images, strict=True)])
    assert psnr_loss(one, other).item() == pytest.approx(expected, abs=1e-4)


def test_the_loss_of_a_perfect_image_is_finite_and_so_is_its_gradient():
    image = torch.rand(1, 3, 8, 8, requires_grad=True)
    loss = psnr_loss(image, image.detach())
    loss.backward()
    assert loss.item() == pytest.approx(-80)
    assert torch.isfinite(image.grad).all()


def test_initial_weights_follow_from_the_seed(small):
    one, same, other = (build_network(replace(small, method="map", seed=seed)).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def hard(tmp_path_factory, make_store, pair):
    """One pair of patches of colour under a strong blur."""
    return make_store(tmp_path_factory.mktemp("hard") / "hard.zarr", {"x": pair(3, 40, 48)})


def gain(config, store, folder, steps):
    """dB won over the blurred image after a few quick steps."""
    fast = replace(config, width=8, batch_size=4, crop_size=32, learning_rate=1e-2, grad_clip=1.0, val_every=1000)
    history = train(replace(fast, steps=steps, log_every=10), store, folder, validation=store)
    (key,) = store.keys
    return history[-1]["val_psnr"] - psnr(store.image("blurred", key), store.image("sharp", key))


@pytest.mark.parametrize("method", ["none", "cat", "map", "map-dropout"])
def test_every_method_overfits_a_pair(small, tmp_path, make_store, pair, method):
    _, sharp, masks = pair(3, 40, 48)
    dim = (0.55 * cv2.blur(sharp, (5, 3))).astype(np.uint8)
    store = make_store(tmp_path / "dim.zarr", {"x": (dim, sharp, masks)})
    assert gain(replace(small, method=method), store, tmp_path / "run", steps=40) > 8


def test_masks_help_where_blur_hides_borders(small, hard, tmp_path):
    without, with_masks = (gain(replace(small, method=name), hard, tmp_path / name, 50) for name in ("none", "map"))
    assert with_masks > without + 1.5


def test_a_run_folder_says_what_was_done(store, small, tmp_path, logged):
    config = replace(small, method="cat")
    history = train(config, store, tmp_path)
    assert TrainConfig.of(yaml.safe_load((tmp_path / "config.yaml").read_text())) == config
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["train"]["recipe"] == store.header.fingerprint
    assert len(facts["validation"]["images"]) == 1
    assert facts["versions"]["torch"] == metadata.version("torch")
    assert [row["step"] for row in history] == list(range(11))
    assert [row["step"] for row in history if "val_psnr" in row] == [0, 4, 8, 10]
    rows = logged(tmp_path)
    assert [int(row["step"]) for row in rows] == list(range(11))
    for row in rows[1:]:
        assert float(row["learning_rate"]) == pytest.approx(learning_rate(int(row["step"]) - 1, config), rel=1e-4)
        assert float(row["loss"]) < 0
    assert (tmp_path / "curves.png").read_bytes() == repr(history).encode()


def test_the_logged_loss_is_the_mean_since_the_row_before(store, small, tmp_path, logged):
    train(replace(small, log_every=3), store, tmp_path)
    every = train(small, store, tmp_path / "every")
    losses = {row["step"]: row["loss"] for row in every[1:]}
    groups = {3: (1, 2, 3), 4: (4,), 6: (5, 6), 8: (7, 8), 9: (9,), 10: (10,)}
    assert {int(row["step"]): float(row["loss"] or "nan") for row in logged(tmp_path)[1:]} == {
        step: pytest.approx(np.mean([losses[n] for n in steps]), rel=1e-5) for step, steps in groups.items()
    }


@pytest.mark.parametrize("method", ["none", "map-dropout"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_interrupted_at_random_and_resumed_equals_one_that_was_not(
    store, small, tmp_path, uninterrupted, method, seed, assert_same_run
):
    config, calls = replace(small, method=method), random.Random(seed)
    interruptions = sorted(calls.sample(range(11), 3))  # three times in a row; the last may be of the last step

    for step in interruptions:

        def interrupt(row, step=step):
            if row["step"] >= step:
                raise Killed

        with pytest.raises(Killed):
            train(config, store, tmp_path, progress=interrupt)
    train(config, store, tmp_path)
    assert_same_run(tmp_path, uninterrupted(method))


@pytest.mark.parametrize("write", [0, 1, 3, 5, 7, 9, 11, 12])
def test_a_run_killed_while_saving_and_resumed_equals_one_that_was_not(
    store, small, tmp_path, uninterrupted, monkeypatch, write, assert_same_run
):
    count, durably = iter(range(10**6)), state.write_durably

    def killed(path, data):
        if next(count) == write:
            raise Killed
        durably(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(state, "write_durably", killed)
        with pytest.raises(Killed):
            train(small, store, tmp_path)
    train(small, store, tmp_path)
    assert_same_run(tmp_path, uninterrupted("none"))


def test_a_finished_run_is_left_as_it_is(store, small, tmp_path, uninterrupted, monkeypatch, assert_same_run):
    undisturbed = uninterrupted("none")
    train(small, store, tmp_path)
    monkeypatch.setitem(LOSSES, "psnr", None)
    assert [row["step"] for row in train(small, store, tmp_path)] == list(range(11))
    assert_same_run(tmp_path, undisturbed)


@pytest.fixture(scope="module")
def begun(store, small, tmp_path_factory):
    """A run of one step."""
    folder = tmp_path_factory.mktemp("begun")
    train(replace(small, steps=1), store, folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "map"}, "method none -> map"),
        ({"steps": 2}, "steps 1 -> 2"),
        ({"seed": 5}, "seed 0 -> 5"),
        ({"betas": (0.9, 0.99)}, r"betas \(0.9, 0.9\) -> \(0.9, 0.99\)"),
        ({"learning_rate": 1.0, "crop_size": 20}, "crop_size 24 -> 20; learning_rate 0.001 -> 1.0"),
    ],
    ids=str,
)
def test_going_on_with_other_settings_is_refused_with_what_differs(
    store, small, begun, changes, said, contents, assert_same_run
):
    before = contents(begun)
    with pytest.raises(ConfigError, match=said) as caught:
        train(replace(small, **{"steps": 1} | changes), store, begun)
    assert str(begun) in str(caught.value)
    assert_same_run(begun, before)


def test_where_a_run_computes_may_change(store, small, begun, monkeypatch):
    monkeypatch.setattr(loop, "crop_loader", lambda *_: (batch for batch in ()))
    train(replace(small, steps=1, device="auto", loader_workers=3), store, begun)


def _images(pair, keys):
    return {key: pair(seed, 30, 40) for seed, key in enumerate(keys)}


def test_going_on_with_other_data_is_refused(small, tmp_path, make_store, pair):
    first = make_store(tmp_path / "first.zarr", _images(pair, "abc"))
    other_masks = make_store(tmp_path / "masks.zarr", _images(pair, "abc"), recipe="b")
    config = replace(small, steps=1)
    train(config, first, tmp_path / "run")
    with pytest.raises(ConfigError, match="train"):
        train(config, other_masks, tmp_path / "run")
    with pytest.raises(ConfigError, match="validation"):
        train(config, first, tmp_path / "run", validation=first)


def test_going_on_with_more_images_than_the_run_began_with_is_refused(small, tmp_path, make_store, pair):
    val = make_store(tmp_path / "val.zarr", _images(pair, "v"))
    begun = make_store(tmp_path / "begun.zarr", _images(pair, "abcd"), pending=("d",))
    finished = make_store(tmp_path / "finished.zarr", _images(pair, "abcd"))
    assert (len(begun.ready_keys), len(finished.ready_keys)) == (3, 4)
    train(replace(small, steps=1), begun, tmp_path / "run", val)
    with pytest.raises(ConfigError):
        train(replace(small, steps=1), finished, tmp_path / "run", val)


@pytest.mark.parametrize("log_every", [1, 3, 4])
def test_a_run_that_diverges_stops_and_keeps_its_last_state(store, small, tmp_path, monkeypatch, log_every, contents):
    monkeypatch.setitem(LOSSES, "psnr", _spoiled_from(6))
    config = replace(small, log_every=log_every)
    with pytest.raises(Diverged, match=r"loss is nan at step \d.*step 4 is intact") as caught:
        train(config, store, tmp_path)
    assert str(tmp_path) in str(caught.value)
    kept = contents(tmp_path)["state.pt"]
    assert kept["step"] == 4
    assert all(torch.isfinite(tensor).all() for tensor in kept["network"].values())
    assert all(torch.isfinite(tensor).all() for tensor in load_network(tmp_path / "last.safetensors").parameters())


def _spoiled_from(step):
    calls = iter(range(1, 100))

    def spoiled(output, sharp):
        bad = torch.is_grad_enabled() and next(calls) >= step
        return psnr_loss(output, sharp) * (math.nan if bad else 1)

    return spoiled


def test_weights_that_become_infinite_in_a_step_of_validation_are_a_divergence_too(store, small, tmp_path, contents):
    wild = replace(small, learning_rate=1e30, grad_clip=0.0, val_every=1)
    with pytest.raises(Diverged):
        train(wild, store, tmp_path)
    assert contents(tmp_path)["state.pt"]["step"] == 0


def test_clipping_limits_the_norm_of_the_gradient(store, small, tmp_path, monkeypatch):
    norms, step = [], torch.optim.AdamW.step

    def noted(self, *arguments):
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    train(replace(small, grad_clip=0.0, steps=3), store, tmp_path / "free")
    train(replace(small, grad_clip=0.01, steps=3), store, tmp_path / "clipped")
    assert min(norms[:3]) > 0.02
    assert norms[3:] == pytest.approx([0.01] * 3, rel=1e-3)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.99])
def test_held_out_images_and_training_images_are_disjoint_and_all(store, share):
    for seed in range(4):
        kept, held_out = split_images(store, share, seed)
        assert sorted(kept + held_out) == sorted(store.keys)
        assert len(held_out) == min(3, max(1, round(share * 4)))
        assert split_images(store, share, seed) == (kept, held_out)
    assert len({tuple(split_images(store, share, seed)[1]) for seed in range(12)}) > 1


@pytest.mark.parametrize("given", [False, True], ids=["held out", "a store of their own"])
def test_images_to_validate_on_are_never_trained_on(store, small, tmp_path, make_store, pair, monkeypatch, given):
    read, trained, scored = MaskStore.image, set(), set()

    def noted(self, name, key, window=None):
        (trained if window else scored).add((self.path, key))
        return read(self, name, key, window)

    monkeypatch.setattr(MaskStore, "image", noted)
    val = make_store(tmp_path / "val.zarr", _images(pair, "ab")) if given else None
    train(replace(small, val_share=0.5), store, tmp_path / "run", val)
    images = json.loads((tmp_path / "run/run.json").read_text())["validation"]["images"]
    assert scored == {((val or store).path, key) for key in images}
    assert len(scored) == 2
    assert not trained & scored
    assert len(trained) == (4 if given else 2)


def test_masks_reach_the_network_only_when_the_method_has_a_prior(store, small, tmp_path, monkeypatch):
    read, keys = MaskStore.atoms, []
    monkeypatch.setattr(MaskStore, "atoms", lambda self, *where: keys.append(where) or read(self, *where))
    train(replace(small, steps=1), store, tmp_path / "none")
    assert keys == []
    train(replace(small, steps=1, method="cat"), store, tmp_path / "cat")
    assert keys


def test_validation_scores_whole_images_as_evaluation_does(store, small, tmp_path):
    history = train(replace(small, method="map", val_share=0.5), store, tmp_path)
    network = load_network(tmp_path / "last.safetensors")
    images = json.loads((tmp_path / "run.json").read_text())["validation"]["images"]
    scores = [score for score, _ in score_images(network, store, images)]
    assert history[-1]["val_psnr"] == pytest.approx(np.mean([score.metrics["psnr"] for score in scores]), abs=1e-6)
    assert history[-1]["val_ssim"] == pytest.approx(np.mean([score.metrics["ssim_wang"] for score in scores]), abs=1e-6)


def test_best_weights_are_those_of_the_best_validation_the_last_of_equals(store, small, tmp_path, monkeypatch):
    scores, weights = iter([1.0, 5.0, 3.0, 5.0, 2.0]), []

    def scripted(network, val):
        weights.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return {"val_psnr": next(scores), "val_ssim": 0.5, "val_mcr": 0.0}

    monkeypatch.setattr(running.Run, "validate", lambda run: scripted(run.network, run.val))
    train(replace(small, steps=8, val_every=2), store, tmp_path)
    for name, place in (("initial", 0), ("best", 3), ("last", 4)):
        kept = load_network(tmp_path / f"{name}.safetensors").state_dict()
        assert all(torch.equal(kept[key], weights[place][key]) for key in kept), name
    assert any(not torch.equal(weights[1][key], weights[3][key]) for key in weights[0])


@pytest.mark.parametrize(
    ("keys", "pending", "validation", "said"),
    [
        ("a", "", False, "1 image ready; holding one out for validation needs two"),
        ("ab", "b", False, "1 image"),
        ("ab", "ab", True, "no image is ready to train on"),
    ],
)
def test_too_few_images_are_refused_and_no_run_is_made(
    small, tmp_path, make_store, pair, store, keys, pending, validation, said
):
    few = make_store(tmp_path / "few.zarr", _images(pair, keys), pending=tuple(pending))
    with pytest.raises(StoreError, match=said):
        train(small, few, tmp_path / "run", store if validation else None)
    assert not (tmp_path / "run").exists()


def test_nothing_to_validate_on_is_refused(small, tmp_path, make_store, pair, store):
    empty = make_store(tmp_path / "empty.zarr", _images(pair, "a"), pending=("a",))
    with pytest.raises(StoreError, match="no image is ready to validate on"):
        train(small, store, tmp_path / "run", empty)


def test_images_without_masks_train_and_validate(small, tmp_path, make_store, pair):
    blurred, sharp, _ = pair(0, 30, 40)
    store = make_store(tmp_path / "bare.zarr", {key: (blurred, sharp, np.zeros((0, 30, 40), bool)) for key in "ab"})
    assert store.atoms("a") == AtomMap.empty((30, 40))
    history = train(replace(small, method="map-dropout", steps=2), open_store(store.path), tmp_path / "run")
    assert all(math.isfinite(value) for row in history for value in row.values())


def test_every_setting_is_written_down(small, begun):
    assert yaml.safe_load((begun / "config.yaml").read_text()).keys() == asdict(small).keys()
