"""Validation beside a device: seconds per image, one after the other with scores on the host, and as it is done.

python -m benchmarks.train.validation. The device is simulated: it takes 0.1 s of sleep for an image of 1280x720 (what
NAFNet-32 may take on a GPU), and 0.02 s for its scores; reading, and scores on the host, are real. Ways take turns;
medians of three. Prints a table and writes results/validation.json.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.common.figures import RESULTS
from benchmarks.gpu import scenes
from samdeblur.evaluation import evaluate
from samdeblur.evaluation.restore import Restored
from samdeblur.evaluation.sets import Sample
from samdeblur.models import Deblurrer, deblur, with_prior
from samdeblur.storage import MaskStore

NETWORK, SCORES = 0.1, 0.02


class Device(nn.Module):
    """Takes its time and gives the image back."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, image: Tensor) -> Tensor:
        time.sleep(NETWORK)
        return image


def one_after_the_other(network: Deblurrer, store: MaskStore) -> None:
    for key in store.keys:
        sample = Sample(store.image("blurred", key), store.image("sharp", key))
        evaluate.measure(key, sample, Restored(deblur(network, sample.blurred)))


def now(network: Deblurrer, store: MaskStore) -> None:
    def on_device(*images: Tensor) -> list[dict[str, Tensor]]:
        time.sleep(SCORES)
        return [dict.fromkeys(evaluate.FIDELITY, torch.tensor(1.0))] * 2

    with mock.patch.object(evaluate, "compare", on_device):
        list(evaluate.score_images(network, store, store.keys))


def main() -> None:
    torch.set_num_threads(1)
    network = with_prior(Device(), None)
    with tempfile.TemporaryDirectory() as folder:
        store = scenes.store(scenes.FULL, Path(folder))
        spent: dict[str, list[float]] = {"one after the other, scores on the host": [], "as it is done": []}
        for _ in range(3):
            for times, way in zip(spent.values(), (one_after_the_other, now), strict=True):
                start = time.perf_counter()
                way(network, store)
                times.append((time.perf_counter() - start) / len(store.keys))
    rows = {name: round(statistics.median(times), 3) for name, times in spent.items()}
    for name, seconds in rows.items():
        print(f"{name:42} {seconds:6.3f} s per image")
    (RESULTS / "validation.json").write_text(
        json.dumps({"simulated device, s": NETWORK + SCORES, "rows": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
