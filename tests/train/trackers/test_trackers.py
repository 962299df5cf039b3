"""Trackers: what their own readers find after a run, and that none of them can end one."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
from PIL import Image

from samdeblur.train import ConfigError, train
from samdeblur.train.config import TRACKERS
from samdeblur.train.trackers import base
from samdeblur.train.trackers.base import TrackerFailed, Trackers, require

pytestmark = [
    pytest.mark.usefixtures("quick_curves"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]


@pytest.fixture
def twenty(small):
    return replace(small, steps=20, val_every=10, log_every=5)


def expected(history, name):
    return {int(row["step"]): row[name] for row in history if name in row}


def records(data):
    """Those of a log in LevelDB's format, behind a head of seven bytes."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        if (room := 32768 - place % 32768) < 7:
            place += room
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def test_weights_and_biases_offline_has_the_run(twenty, store, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed (pip install samdeblur[wandb])")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    history = train(replace(twenty, trackers=("wandb",)), store, tmp_path / "run")
    from wandb.proto import wandb_internal_pb2

    (path,) = (tmp_path / "run/wandb").glob("offline-run-*/run-*.wandb")
    rows: dict[object, dict[str, object]] = {}
    settings, files = {}, []
    for data in records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows.setdefault(row.get("step"), {}).update(row)
        for item in record.run.config.update:
            settings[item.key] = json.loads(item.value_json)
        files += [entry.path for entry in record.artifact.manifest.contents]
    for name in ("loss", "val_psnr"):
        assert {step: row[name] for step, row in rows.items() if name in row} == pytest.approx(expected(history, name))
    assert (settings["steps"], settings["network"]) == (20, "nafnet")
    assert rows[20]["validation._type"] == "image-file"
    assert {"curves.png", "log.csv", "config.yaml", "run.json"} <= set(files)


def test_mlflows_local_store_has_the_run_and_a_resumed_one_goes_on_in_it(twenty, store, tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="mlflow is not installed (pip install samdeblur[mlflow])")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = replace(twenty, trackers=("mlflow",), save_every=5)

    class Killed(BaseException):
        pass

    def kill(row):
        if row["step"] == 12:
            raise Killed

    with pytest.raises(Killed):
        train(config, store, tmp_path / "run", progress=kill)
    history = train(config, store, tmp_path / "run")
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(tmp_path / "run/mlruns").as_uri())
    (experiment,) = [e for e in client.search_experiments() if e.name == "samdeblur"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.params["steps"]) == ("FINISHED", "20")
    for name in ("loss", "val_psnr"):
        found = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, name)}
        assert found == pytest.approx(expected(history, name))
    names = [file.path for file in client.list_artifacts(run.info.run_id, "report")]
    assert "report/curves.png" in names
    image = client.download_artifacts(run.info.run_id, "validation/step-20.png", str(tmp_path))
    assert np.asarray(Image.open(image)).shape[1] % 3 == 0  # three images in a row


def test_trackios_database_has_the_run(twenty, store, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="trackio is not installed (pip install samdeblur[trackio])")
    history = train(replace(twenty, trackers=("trackio",)), store, tmp_path / "run")
    storage = import_module("trackio.sqlite_storage").SQLiteStorage
    found: dict[int, dict[str, object]] = {}
    for row in storage.get_logs("samdeblur", "run"):
        found.setdefault(int(row["step"]), {}).update(row)
    losses = {step: row["loss"] for step, row in found.items() if "loss" in row}
    assert losses == pytest.approx(expected(history, "loss"))


class Recorder:
    """A tracker that raises where it is told to."""

    def __init__(self, at="", error=None):
        self.at, self.error, self.calls = at, error, []

    def __getattr__(self, name):
        def call(*given):
            self.calls.append((name, *given))
            if name == self.at:
                raise self.error

        return call


@pytest.mark.parametrize("error", [OSError("disk full"), SystemExit(1), KeyError("x")], ids=repr)
@pytest.mark.parametrize("at", ["scalars", "image", "files", "close", "open"])
def test_a_tracker_that_raises_is_said_once_and_does_not_end_a_run(at, error, twenty, store, tmp_path, monkeypatch):
    good, bad = Recorder(), Recorder(at, error)

    def module(name):
        def open_tracker(folder, config, step):
            if name.endswith("mlflow_tracker") and at == "open":
                raise error
            return bad if name.endswith("mlflow_tracker") else good

        return type("module", (), {"open_tracker": staticmethod(open_tracker)})

    monkeypatch.setattr(base, "require", lambda names: None)
    monkeypatch.setattr("samdeblur.train.loop.require", lambda names: None)
    monkeypatch.setattr(base.importlib, "import_module", module)
    with pytest.warns(TrackerFailed, match="tracker mlflow failed, and the run goes on without it") as said:
        history = train(replace(twenty, trackers=("mlflow", "wandb")), store, tmp_path / "run")
    assert len([note for note in said if note.category is TrackerFailed]) == 1
    assert history[-1]["step"] == 20
    losses = [call[2]["loss"] for call in good.calls if call[0] == "scalars" and "loss" in call[2]]
    assert losses == [row["loss"] for row in history if "loss" in row]
    assert [name for name, *_ in good.calls][-2:] == ["files", "close"]
    if at != "open":
        assert [name for name, *_ in bad.calls].count(at) == 1


@pytest.mark.parametrize("name", TRACKERS)
def test_the_command_that_installs_a_tracker_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else name, None)
    with pytest.raises(ConfigError, match=rf"{name}: not installed; pip install samdeblur\[{name}\]"):
        require([name])


def test_without_trackers_nothing_is_done(store):
    Trackers().scalars({"step": 0, "loss": 1.0})
    Trackers().image(0, store, "none of these", np.zeros((4, 4, 3), np.uint8))
