"""Publishing on a stand-in of the Hugging Face Hub by the real huggingface_hub, and training from there elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys

import hub_server
import pytest

from samdeblur.models.checkpoints.hub import is_hub_name
from samdeblur.storage import open_store

pytest.importorskip("huggingface_hub", reason="the extra `hub` is not installed")

ADDRESS = "hf://datasets/someone/masks/toy.zarr.zip"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The stand-in; programs that are started, and libraries that are imported, speak to it."""
    with hub_server.hub_server() as served:
        for name, value in {
            "HF_ENDPOINT": served.url,
            "HF_TOKEN": hub_server.TOKEN,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }.items():
            monkeypatch.setenv(name, value)
        yield served


@pytest.fixture
def program(tmp_path):
    """Runs a command in a process of its own: huggingface_hub reads its settings when it is imported."""

    def call(name, *arguments, **environment):
        code = f"from samdeblur.cli.programs import {name}; import sys; sys.argv[0] = {name!r}; {name}()"
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, cwd=tmp_path)

    return call


def files_with(folder, secret):
    """Files anywhere in a folder that hold a text."""
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def test_what_is_pushed_trains_from_the_hub_in_another_process(hub, program, store, tiny, tmp_path):
    pushed = program("prep", "export", store, "--push", ADDRESS, "--with-images", "--licence", "CC BY 4.0")
    assert pushed.returncode == 0, pushed.stderr
    held = hub.repositories["someone/masks"]
    assert set(held) == {"toy.zarr.zip", "toy.zarr.zip.sha256", "README.md", "toy.zarr.jpg"}
    (oid,) = hub.large
    assert held["toy.zarr.zip.sha256"].decode() == f"{oid}  toy.zarr.zip\n"
    card = held["README.md"].decode()
    for words in ('license: "cc-by-4.0"', ADDRESS, "5 of 5 images", "superpixels", "samdeblur-train"):
        assert words in card

    hub.uses = 3  # addresses run out while it trains
    hub.asked.clear()
    trained = program("train", ADDRESS, "--method", "map", *tiny, "--out", tmp_path / "run")
    assert trained.returncode == 0, trained.stderr
    assert "GET storage" in hub.asked
    info = program("prep", "info", ADDRESS)
    assert "5 done" in info.stdout
    for said in (pushed, trained, info):
        assert hub_server.TOKEN not in said.stdout + said.stderr
    assert files_with(tmp_path, hub_server.TOKEN) == []
    assert files_with(tmp_path, "Signature=") == []


def test_a_push_is_not_sent_twice_and_asks_before_it_replaces(hub, program, store):
    assert program("prep", "export", store, "--push", ADDRESS).returncode == 0
    hub.asked.clear()
    assert program("prep", "export", store, "--push", ADDRESS).returncode == 0
    assert not [asked for asked in hub.asked if "commit" in asked or "PUT" in asked]
    refused = program("prep", "export", store, "--push", ADDRESS, "--with-images")
    assert refused.returncode == 2
    assert "is there already" in refused.stderr
    assert program("prep", "export", store, "--push", ADDRESS, "--with-images", "--overwrite").returncode == 0
    assert len(hub.large) == 2


def test_a_push_that_was_cut_off_goes_on_with_what_has_arrived(hub, program, store):
    assert program("prep", "export", store, "--push", ADDRESS).returncode == 0
    del hub.repositories["someone/masks"]["toy.zarr.zip"]  # sent, and not committed
    hub.asked.clear()
    assert program("prep", "export", store, "--push", ADDRESS).returncode == 0
    assert not [asked for asked in hub.asked if asked.startswith("PUT")]
    assert "toy.zarr.zip" in hub.repositories["someone/masks"]


def test_a_card_that_somebody_else_wrote_stays(hub, program, store):
    hub.repositories["someone/masks"] = {"README.md": b"# Mine"}
    assert program("prep", "export", store, "--push", "hf://datasets/someone/masks").returncode == 0
    assert hub.repositories["someone/masks"]["README.md"] == b"# Mine"
    assert any(name.endswith("-test-masks.zarr.zip") for name in hub.repositories["someone/masks"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("info", ADDRESS), "login"),
        (("export", "STORE", "--push", ADDRESS), "HTTP 401"),
    ],
)
def test_without_a_token_the_line_says_what_to_set(hub, program, store, arguments, words):
    hub.repositories["someone/masks"] = {"toy.zarr.zip": b""}
    arguments = [store if argument == "STORE" else argument for argument in arguments]
    refused = program("prep", *arguments, HF_TOKEN="hf_anotherTokenThatIsWrong")
    assert words in refused.stderr
    assert "HF_TOKEN" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert "hf_another" not in refused.stderr


@pytest.mark.parametrize(
    "address", ["hf://datasets/x", "hf://datasets/a/b/c.h5", "s3://bucket/x.zip", "https://x/y.zip"]
)
def test_other_addresses_to_push_to_are_refused(hub, program, store, address):
    refused = program("prep", "export", store, "--push", address)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr


def test_a_folder_on_the_hub_opens(hub, program, store):
    hub.repositories["someone/masks"] = {
        f"data/s.zarr/{file.relative_to(store).as_posix()}": file.read_bytes()
        for file in store.rglob("*")
        if file.is_file()
    }
    verified = program("prep", "verify", "hf://datasets/someone/masks@main/data/s.zarr")
    assert (verified.returncode, verified.stdout.count("sound")) == (0, 1), verified.stdout + verified.stderr


def test_a_model_of_the_hub_is_fetched_by_name_and_its_revision_is_in_the_recipe(
    hub, program, random_sam, pairs, tmp_path
):
    pytest.importorskip("transformers", reason="the extra `segmenters` is not installed")
    from sam_families import sam_model_of_transformers

    sam_model_of_transformers(random_sam()).save_pretrained(tmp_path / "model")
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    hub.repositories["someone/sam-tiny"] = files | {"README.md": b"a card", "sam.pt": b"not wanted"}
    run = ("prep", "run", pairs, tmp_path / "s.zarr", "--split", "test", "--workers", 1, "--points-per-side", 2)
    early = program(*run, "--sam", "someone/sam-tiny")
    assert (early.returncode, "weights fetch someone/sam-tiny" in early.stderr) == (2, True), early.stderr
    fetched = program("prep", "weights", "fetch", "someone/sam-tiny")
    assert (fetched.returncode, f"--sam someone/sam-tiny@{hub_server.COMMIT}" in fetched.stdout) == (0, True)
    assert not any("README" in asked or "sam.pt" in asked for asked in hub.asked)
    done = program(*run, "--sam", "someone/sam-tiny", "--pred-iou-thresh", -1, "--stability-score-thresh", -1)
    assert done.returncode == 0, done.stderr
    recipe = open_store(tmp_path / "s.zarr").header.recipe["segmenter"]
    assert recipe["origin"] == f"someone/sam-tiny@{hub_server.COMMIT}"


def test_what_is_a_name_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b").write_text("")
    assert all(map(is_hub_name, ("facebook/sam2.1-hiera-large", "facebook/sam3@main", f"u/n@{'a' * 40}", "x/y")))
    assert not any(
        map(
            is_hub_name,
            ("a/b", "bundled", "sam_vit_h", "weights/sam.pth", "./x/y", "/x/y", "a/b/c", "x/", "u/n@", "../x"),
        )
    )
