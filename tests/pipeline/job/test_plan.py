import pytest
import torch

from samdeblur.models import DeviceError
from samdeblur.pipeline import PrepSettings, Resources, StoreOptions, Workers, open_source, prepare
from samdeblur.pipeline.job import coordinator
from samdeblur.pipeline.job.plan import ensure_store

GPU = PrepSettings(device="cuda", true_masks=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this client has a GPU")
def test_a_device_of_the_workers_is_not_looked_for_where_the_job_is_begun(tmp_path):
    source = open_source("worlds:2:64", "train")
    with pytest.raises(DeviceError):
        ensure_store(source, tmp_path / "here.zarr", GPU, StoreOptions())
    assert not (tmp_path / "here.zarr").exists()
    assert ensure_store(source, tmp_path / "there.zarr", GPU, StoreOptions(), here=False)


@pytest.mark.parametrize("scheduler", [None, "tcp://127.0.0.1:1"])
def test_a_job_for_a_scheduler_is_not_for_the_devices_here(tmp_path, monkeypatch, scheduler):
    class Seen(Exception):
        pass

    def ensure(*_, here):
        raise Seen(here)

    monkeypatch.setattr(coordinator, "ensure_store", ensure)
    workers = Workers(Resources(scheduler=scheduler), "cpu")
    with workers, pytest.raises(Seen, match=str(scheduler is None)):
        prepare(open_source("worlds:2:64", "train"), tmp_path / "x.zarr", GPU, StoreOptions(), workers)
