"""A training on a GPU that is pretended, from end to end."""

from __future__ import annotations

from dataclasses import replace

import pretended
import pytest
import torch

from samdeblur.evaluation.ranks import Ranks
from samdeblur.train import loop, train

pytestmark = pytest.mark.usefixtures("quick_curves")


@pytest.fixture(autouse=True)
def without_pinning(monkeypatch):
    """Of memory, which asks the driver."""
    monkeypatch.setattr(loop, "crop_loader", _unpinned(loop.crop_loader))


def _unpinned(load):
    def loader(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: False)
            batches = load(*arguments)
            first = next(batches)
        yield first
        yield from batches

    return loader


@pytest.mark.parametrize(
    "changes", [{}, {"precision": "float64"}, {"channels_last": True, "ema": 0.9, "accumulate": 2}]
)
def test_a_training_on_a_gpu_is_that_on_a_cpu(store, small, tmp_path, changes):
    config = replace(small, method="map-dropout", steps=4, loader_workers=0, batch_size=4, **changes)
    expected = train(config, store, tmp_path / "cpu")
    with pretended.cuda():
        found = train(replace(config, device="cuda"), store, tmp_path / "gpu")
    for row, other in zip(found, expected, strict=True):
        for name in ("loss", "val_psnr", "val_ssim"):
            assert row.get(name) == (pytest.approx(other[name], rel=1e-4) if name in other else None)


@pytest.mark.parametrize(("local", "expected"), [("1", 8), ("4", 2), ("16", 1)])
def test_the_cores_of_a_machine_are_shared_among_its_gpus(small, monkeypatch, local, expected):
    monkeypatch.setattr(loop, "CPU_COUNT", 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert loop.loader_workers(small, Ranks(torch.device("cuda", 0))) == expected
    assert loop.loader_workers(small, Ranks(torch.device("cpu"))) == 0
    assert loop.loader_workers(replace(small, loader_workers=3), Ranks(torch.device("cuda", 0))) == 3


def test_masks_are_dropped_before_the_device_sees_them_and_they_are_the_same(store, small, tmp_path, monkeypatch):
    """How many are left decides on shapes, which a GPU would be waited for."""
    from samdeblur.models.priors import map_unit

    config = replace(small, method="map-dropout", steps=3)
    expected = train(config, store, tmp_path / "loader")
    dropped = []
    drop = map_unit.drop_masks
    monkeypatch.setattr(map_unit, "drop_masks", lambda *arguments: dropped.append(arguments) or drop(*arguments))
    train(config, store, tmp_path / "again")
    assert dropped == []
    load = loop.crop_loader
    monkeypatch.setattr(
        loop, "crop_loader", lambda crops, share, workers, dropout, *more: load(crops, share, workers, 0.0, *more)
    )
    found = train(config, store, tmp_path / "device")
    assert len(dropped) >= 3
    assert [row.get("loss") for row in found] == [row.get("loss") for row in expected]
