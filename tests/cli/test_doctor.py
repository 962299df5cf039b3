"""samdeblur-prep doctor: a table for an issue, what is in the way, and no secrets."""

from __future__ import annotations

import shutil
from collections import namedtuple
from types import SimpleNamespace

import pytest

from samdeblur.cli.commands import doctor

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def sound(monkeypatch):
    """A machine with nothing in the way."""
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(8 << 30, 0, 8 << 30))
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda what: (4096, 4096))


def run(samdeblur, *places):
    result = samdeblur("prep", "doctor", "--no-gpu", *places)
    rows = dict(
        line.strip("| ").split(" | ", 1)
        for line in result.out.splitlines()
        if line.startswith("| ") and " | " in line[2:-2]
    )
    return result, rows


def test_a_sound_machine_is_one_table(samdeblur, sound, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_SECRETSECRET")
    result, rows = run(samdeblur)
    assert result.code == 0, result.out
    assert {"samdeblur", "system", "packages", "memory", "/dev/shm", "open files", "text", "home"} <= rows.keys()
    assert "torch" in rows["packages"]
    assert "HF_TOKEN is set" in rows["environment"]
    assert "SECRET" not in result.out


def test_places_are_tried(samdeblur, sound, store, tmp_path):
    (tmp_path / "some").mkdir()
    result, rows = run(samdeblur, store, tmp_path / "some", tmp_path / "gone", "http://a:SECRET@127.0.0.1:9/x.zarr")
    assert "a mask store" in rows[str(store)]
    assert "an empty folder" in rows[str(tmp_path / "some")]
    assert rows[str(tmp_path / "gone")] == "not there"
    assert rows["http://127.0.0.1:9/x.zarr"] == "out of reach"
    assert result.code == 1
    assert "SECRET" not in result.out + result.err


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda patch: patch.setattr(shutil, "disk_usage", lambda place: Usage(64 << 20, 0, 64 << 20)), "--shm-size"),
        (lambda patch: patch.setattr(doctor.resource, "getrlimit", lambda what: (256, 256)), "ulimit -n"),
        (
            lambda patch: patch.setattr(doctor, "tempfile", SimpleNamespace(gettempdir=lambda: "/tmp/" + 100 * "x")),
            "TMPDIR",
        ),
        (lambda patch: patch.setattr(doctor, "_version", lambda name: "" if name == "torch" else "1"), "torch missing"),
    ],
)
def test_what_is_in_the_way_is_named_with_its_remedy(samdeblur, sound, monkeypatch, spoil, said):
    spoil(monkeypatch)
    result, _ = run(samdeblur)
    assert result.code == 1
    assert said in result.out


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("print('A GPU, 24 GiB')", "A GPU"),
        ("raise ImportError('no torch')", "no torch"),
        ("import threading; threading.Event().wait()", "no answer"),
    ],
)
def test_gpus_are_asked_for_in_a_process_of_their_own(monkeypatch, program, said):
    monkeypatch.setattr(doctor, "LOOK_FOR_GPUS", program)
    monkeypatch.setattr(doctor, "GPU_PATIENCE", 0.5 if "wait" in program else 60)
    line = doctor._gpus()
    assert said in f"{line.value} {line.problem}"
