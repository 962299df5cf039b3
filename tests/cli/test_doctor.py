"""samdeblur-prep doctor: a table for an issue, what is in the way, and no secrets."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest

from samdeblur.cli.commands import doctor

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def sound(monkeypatch):
    """A machine with nothing in the way."""
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(8 << 30, 0, 8 << 30))
    limits = {doctor.resource.RLIMIT_NOFILE: 4096}
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda what: 2 * (limits.get(what, -1),))
    monkeypatch.setattr(doctor, "CGROUP", Path("/no/such/folder"))


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


@pytest.mark.parametrize(
    ("files", "limits", "said"),
    [
        ({}, {}, "; no limit found"),
        ({"memory.max": "max"}, {}, "; no limit found"),
        ({"memory.max": str(512 << 20)}, {}, "; cgroup limit (container, batch job) 512 MiB"),
        (
            {"memory/memory.limit_in_bytes": str(512 << 20)},
            {},
            "; cgroup limit (container, batch job) 512 MiB",
        ),
        ({"memory/memory.limit_in_bytes": str(1 << 62)}, {}, "; no limit found"),
        ({}, {"RLIMIT_AS": 256 << 20}, "; ulimit -v 256 MiB"),
        ({"memory.max": str(512 << 20)}, {"RLIMIT_DATA": 256 << 20}, "512 MiB; ulimit -d 256 MiB"),
    ],
)
def test_a_limit_of_memory_is_called_what_it_is(samdeblur, sound, monkeypatch, tmp_path, files, limits, said):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    sizes = {getattr(doctor.resource, name): size for name, size in limits.items()}
    monkeypatch.setattr(doctor, "CGROUP", tmp_path)
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda what: 2 * (sizes.get(what, -1),))
    _, rows = run(samdeblur)
    assert rows["memory"].removesuffix(" |").endswith(said), rows["memory"]


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
