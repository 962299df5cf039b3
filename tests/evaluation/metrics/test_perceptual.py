from __future__ import annotations

import sys
from types import ModuleType
from urllib.error import URLError

import numpy as np
import pytest
import torch

from samdeblur.evaluation.metrics.perceptual import PYIQA, TORCHMETRICS, PerceptualError, perceptual_metrics

CPU = torch.device("cpu")


def images(size=24):
    """A result and its sharp image."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (size, size + 4, 3), np.uint8), rng.integers(0, 256, (size, size + 4, 3), np.uint8)


def module(monkeypatch, name, **contents):
    """A module that stands in for a library."""
    stand_in = ModuleType(name)
    stand_in.__dict__.update(contents)
    monkeypatch.setitem(sys.modules, name, stand_in)
    return stand_in


class Accumulating:
    """As torchmetrics has them: the mean over what came since the last reset, on its device."""

    def __init__(self, **options):
        self.options, self.seen, self.device = options, [], None

    def to(self, device):
        self.device = device
        return self

    def update(self, result, sharp):
        for one in (result, sharp):
            assert (one.shape, one.dtype, one.device) == ((1, 3, 24, 28), torch.float32, self.device)
            assert 0 <= one.min() < one.max() <= 1
        self.seen.append(result.sum() - 2 * sharp.sum())

    def compute(self):
        return torch.stack(self.seen).mean()

    def reset(self):
        self.seen = []


@pytest.fixture
def torchmetrics(monkeypatch):
    classes = {kind: Accumulating for kind, _, _ in TORCHMETRICS.values()}
    module(monkeypatch, "torchmetrics", __version__="9.9")
    return module(monkeypatch, "torchmetrics.image", **classes)


class Callable:
    """As pyiqa has them."""

    def __init__(self, metric_mode, lower_better, value):
        self.metric_mode, self.lower_better, self.value = metric_mode, lower_better, value

    def __call__(self, *given):
        assert len(given) == {"FR": 2, "NR": 1}[self.metric_mode]
        return self.value(*given).reshape(1, 1)


@pytest.fixture
def pyiqa(monkeypatch):
    metrics = {
        "niqe": Callable("NR", True, lambda result: result.mean()),
        "topiq_fr": Callable("FR", False, lambda result, sharp: (result - sharp).abs().max()),
        "fid": None,
        "psnr": None,
    }
    return module(
        monkeypatch,
        "pyiqa",
        __version__="0.9",
        list_models=lambda: sorted(metrics),
        create_metric=lambda name, device: metrics[name],
    )


def test_values_come_by_name_for_each_pair_alone(torchmetrics, pyiqa):
    found = perceptual_metrics(["niqe", "lpips", "topiq_fr", "niqe"], CPU)
    result, sharp = images()
    for one, other in ((result, sharp), (sharp, result)):  # nothing of the first pair is left in the second
        x, y = one / 255, other / 255
        expected = {"niqe": x.mean(), "lpips": x.sum() - 2 * y.sum(), "topiq_fr": np.abs(x - y).max()}
        assert found(one, other) == pytest.approx(expected, rel=1e-5)
    assert list(found(result, sharp)) == ["niqe", "lpips", "topiq_fr"]


def test_the_direction_and_the_library_of_each_are_known(torchmetrics, pyiqa):
    found = perceptual_metrics([*TORCHMETRICS, "niqe", "topiq_fr"], CPU)
    assert found.lower_is_better == {
        "lpips": True,
        "lpips-vgg": True,
        "lpips-squeeze": True,
        "dists": True,
        "ms-ssim": False,
        "niqe": True,
        "topiq_fr": False,
    }
    libraries = {metric.name: metric.library for metric in found.metrics}
    assert (libraries["lpips"], libraries["niqe"]) == ("torchmetrics 9.9, of each image", "pyiqa 0.9")
    assert [metric.name for metric in found.metrics if not metric.needs_sharp] == ["niqe"]


def test_without_a_sharp_image_only_metrics_that_need_none_are_given(torchmetrics, pyiqa):
    result, _ = images()
    assert list(perceptual_metrics(["lpips", "niqe", "topiq_fr"], CPU)(result, None)) == ["niqe"]


def test_images_may_be_views_and_must_fit(torchmetrics):
    found = perceptual_metrics(["lpips"], CPU)
    result, sharp = images()
    assert found(result[..., ::-1], sharp[::-1]) == found(result[..., ::-1].copy(), sharp[::-1].copy())
    for other in (sharp[:-1], sharp.astype(np.float32)):
        with pytest.raises(ValueError, match="images must be"):
            found(result, other)


def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    for name in TORCHMETRICS:
        with pytest.raises(
            PerceptualError, match=rf"{name} needs torchmetrics.*; pip install samdeblur\[perceptual\]$"
        ):
            perceptual_metrics([name], CPU)
    for name in PYIQA:
        with pytest.raises(PerceptualError, match=rf"{name} needs pyiqa, which is not installed; pip install pyiqa \("):
            perceptual_metrics([name], CPU)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lpip", "unknown metric 'lpip', did you mean lpips?"),
        ("nique", "unknown metric 'nique', did you mean niqe?"),
        ("xyzzy", "unknown metric 'xyzzy'. There are lpips, "),
        ("fid", "unknown metric 'fid'"),  # of whole sets
        ("psnr", "unknown metric 'psnr'"),  # another than ours
    ],
)
@pytest.mark.parametrize("installed", [True, False], ids=["with pyiqa", "without"])
def test_unknown_names_are_refused_with_the_nearest(name, words, installed, pyiqa, monkeypatch):
    if not installed:
        monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(PerceptualError) as refused:
        perceptual_metrics(["niqe", name] if installed else [name], CPU)
    assert str(refused.value).startswith(words)
    assert ("not installed" in str(refused.value)) is not installed
    assert "\n" not in str(refused.value)


def failing(error):
    def fail(*arguments, **options):
        raise error

    return fail


def test_weights_that_cannot_be_fetched_are_one_line(pyiqa, monkeypatch):
    monkeypatch.setattr(pyiqa, "create_metric", failing(URLError("no route\nto host")))
    with pytest.raises(
        PerceptualError, match=r"metric niqe or its weights could not be loaded: <urlopen error no route$"
    ):
        perceptual_metrics(["niqe"], CPU)


def test_a_metric_that_refuses_an_image_is_one_line_and_memory_errors_pass(torchmetrics, monkeypatch):
    found = perceptual_metrics(["dists"], CPU)
    monkeypatch.setattr(Accumulating, "compute", failing(ValueError("too small\nby far")))
    with pytest.raises(PerceptualError, match=r"metric dists of an image of 28x24: too small$"):
        found(*images())
    monkeypatch.setattr(Accumulating, "compute", failing(torch.OutOfMemoryError("full")))
    with pytest.raises(torch.OutOfMemoryError):
        found(*images())
    monkeypatch.undo()


def library():
    return pytest.importorskip(
        "torchmetrics", reason="torchmetrics is not installed: pip install samdeblur[perceptual]"
    )


def test_ms_ssim_of_torchmetrics_prefers_the_less_noisy():
    library()
    sharp = np.kron(images(24)[1], np.ones((8, 8, 1), np.uint8))
    noise = np.random.default_rng(1).normal(0, 1, sharp.shape)
    found = perceptual_metrics(["ms-ssim"], CPU)
    noisy = [found(np.clip(sharp + s * noise, 0, 255).astype(np.uint8), sharp)["ms-ssim"] for s in (60, 20, 0)]
    assert 0 < noisy[0] < noisy[1] < noisy[2] == pytest.approx(1, abs=1e-5)
    with pytest.raises(PerceptualError, match="metric ms-ssim of an image of 28x24: "):
        found(*images())


def test_lpips_of_torchmetrics_runs_on_its_network(monkeypatch):
    """The network itself, with random weights in place of those that it would fetch."""
    library()
    from torchvision import models

    torch.manual_seed(0)
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda *_, **__: models.squeezenet1_1().state_dict()
    )
    result, sharp = images(64)
    found = perceptual_metrics(["lpips-squeeze"], CPU)
    assert found(sharp, sharp)["lpips-squeeze"] == 0
    once = found(result, sharp)
    assert once["lpips-squeeze"] > 0
    assert found(result, sharp) == once
