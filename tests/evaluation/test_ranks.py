"""Several processes evaluate as one does, and each finds the device that is its own."""

from __future__ import annotations

import csv
import multiprocessing

import children
import pretended
import pytest
import torch

from samdeblur.cli.support.segmenting import MaskOptions, Segmenter
from samdeblur.evaluation import ranks
from samdeblur.evaluation.metrics.perceptual import TORCHMETRICS, perceptual_metrics
from samdeblur.models import DeviceError, NAFNet, pick_device

multiprocessing.set_forkserver_preload(["samdeblur.cli.train", "samdeblur.cli.eval"])


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    network = NAFNet(4, [1], 1, [1])
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save(network.state_dict(), tmp_path / "nafnet.pth")
    return tmp_path / "nafnet.pth"


@pytest.fixture
def scores(tmp_path, checkpoint):
    """scores(name, store, processes) -> the rows of results.csv without times."""

    def call(name, store, processes):
        arguments = ["run", checkpoint, store.path, "--out", tmp_path / name, "--metric", "ms-ssim", "--device", "cpu"]
        with children.started_together(
            [[*arguments, "--report-images", 1]] * processes, tmp_path / name, program="eval"
        ) as all_:
            ended = [child.end() for child in all_]
        assert [end.code for end in ended] == [0] * processes, ended
        with open(tmp_path / name / "results.csv") as file:
            return list(csv.DictReader(file))

    return call


@pytest.mark.parametrize("n_images", [4, 5])
def test_two_processes_find_of_each_image_what_one_finds(make_store, pair, tmp_path, scores, n_images):
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed: pip install samdeblur[perceptual]")
    store = make_store(tmp_path / "toy.zarr", {f"s/{n}": pair(n, 180, 184 + n) for n in range(n_images)})
    one, two = scores("one", store, 1), scores("two", store, 2)
    assert one == two
    assert len({row["ms-ssim"] for row in one}) == n_images


def test_no_metric_is_averaged_over_processes(monkeypatch):
    """Of all that are fetched from a library, with what they are built with."""
    image = pytest.importorskip("torchmetrics.image", reason="torchmetrics is not installed")
    built = []

    class Noted:
        def __init__(self, **options):
            built.append(options)

        def to(self, device):
            return self

    for kind, _, _ in TORCHMETRICS.values():
        monkeypatch.setattr(image, kind, Noted)
    perceptual_metrics(list(TORCHMETRICS), torch.device("cpu"))
    assert len(built) == len(TORCHMETRICS)
    assert all(options["sync_on_compute"] is False for options in built)


@pytest.mark.parametrize(
    ("environment", "visible", "expected"),
    [
        ({"LOCAL_RANK": "3"}, 8, 3),  # torchrun
        ({"SLURM_LOCALID": "2"}, 4, 2),  # srun, all GPUs of a host to each
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "1"}, 2, 1),  # mpirun
        ({"LOCAL_RANK": "3"}, 1, 0),  # srun --gpus-per-task=1: each sees its own
        ({}, 1, 0),
        ({"LOCAL_RANK": "1", "SLURM_LOCALID": "0"}, 2, 1),  # torchrun within srun
    ],
)
def test_each_process_takes_its_own_gpu(monkeypatch, environment, visible, expected):
    for name in ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ranks._own_gpu(visible) == expected


def test_a_process_without_a_gpu_or_a_number_says_so(monkeypatch):
    for name in ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DeviceError, match=r"without LOCAL_RANK, .* or start them with torchrun"):
        ranks._own_gpu(2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(DeviceError, match="process 2 of this machine has no GPU: 2 are visible"):
        ranks._own_gpu(2)


def test_masks_are_found_on_the_gpu_of_the_process(monkeypatch):
    """Not on the first one of the machine, where the models of all processes would be."""
    asked = []
    monkeypatch.setattr("samdeblur.pipeline.job.recipe.load_stages", lambda settings, device: asked.append(device))
    segmenter = Segmenter(MaskOptions("bundled"), torch.device("cuda", 3))
    assert segmenter._stages is None
    assert asked == [torch.device("cuda", 3)]
    with pretended.cuda(), monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "current_device", lambda: 5)  # what `joined` has set
        assert pick_device("auto") == pick_device("cuda") == torch.device("cuda", 5)
