"""samdeblur-prep weights."""

from __future__ import annotations

import hashlib

import pytest
import servers

from samdeblur.models.checkpoints.public import WEIGHTS, Weight

CONTENT = bytes(range(256)) * 1000


def fake(name):
    digest = hashlib.sha256(CONTENT).hexdigest()
    return Weight(name, f"{name}.pth", len(CONTENT), digest, None, f"https://{name}.invalid", f"A {name}", "MIT")


@pytest.fixture
def command(samdeblur, monkeypatch, tmp_path):
    """command("list", ...) -> Result, where sam_tiny and nafnet_tiny are known and lie in tmp_path/weights."""
    for name in list(WEIGHTS):
        monkeypatch.delitem(WEIGHTS, name)
    for name in ("sam_tiny", "nafnet_tiny"):
        monkeypatch.setitem(WEIGHTS, name, fake(name))
    monkeypatch.setenv("SAMDEBLUR_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return lambda *arguments: samdeblur("prep", "weights", *arguments)


@pytest.fixture
def published(tmp_path):
    (tmp_path / "published").mkdir()
    for name in WEIGHTS:
        (tmp_path / "published" / f"{name}.pth").write_bytes(CONTENT)
    return tmp_path / "published"


def rows(shown):
    """name and option -> state."""
    table = shown.out.partition("\n\n")[0].splitlines()[1:]
    return {tuple(row.split()[:2]): row[50:62].strip() for row in table}


def test_fetched_weights_are_said_with_their_option(command, published, tmp_path):
    with servers.folder_server(published) as served:
        shown = command("fetch", "sam_tiny", "nafnet_tiny", "--mirror", served.url)
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.splitlines() == [
        f"sam_tiny: use it with --sam {tmp_path}/weights/sam_tiny.pth",
        f"nafnet_tiny: use it with --predeblur {tmp_path}/weights/nafnet_tiny.pth",
    ]
    shown = command("fetch", "sam_tiny", "--mirror", published, "--folder", tmp_path / "my folder")
    assert shown.out == f"sam_tiny: use it with --sam '{tmp_path}/my folder/sam_tiny.pth'\n"


def test_the_list_says_what_is_there(command, published, tmp_path):
    shown = command("list")
    assert shown.code == 0
    for words in (
        "0.3 MB",
        "MIT",
        str(tmp_path / "weights" / "sam_tiny.pth"),
        "A sam_tiny",
        "https://sam_tiny.invalid",
    ):
        assert words in shown.out
    bundled = {("bundled", option): "bundled" for option in ("--sam", "--predeblur")}
    names = ("sam_tiny", "--sam"), ("nafnet_tiny", "--predeblur")
    assert rows(shown) == bundled | dict.fromkeys(names, "missing")
    assert command("fetch", "sam_tiny", "nafnet_tiny", "--mirror", published).code == 0
    assert rows(command("list")) == bundled | dict.fromkeys(names, "there")
    assert rows(command("list", "--check")) == bundled | dict.fromkeys(names, "sound")
    assert rows(command("list", "--folder", published)) == bundled | dict.fromkeys(names, "there")


def test_the_list_finds_damage(command, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "nafnet_tiny.pth").write_bytes(bytes(len(CONTENT)))
    assert (command("list").code, command("list", "--check").code) == (0, 1)
    assert rows(command("list", "--check"))["nafnet_tiny", "--predeblur"] == "wrong bytes"
    (tmp_path / "weights" / "sam_tiny.pth").write_bytes(b"less")
    shown = command("list")
    assert (shown.code, rows(shown)["sam_tiny", "--sam"]) == (1, "wrong size")


def test_what_is_not_known_is_refused_before_anything_is_fetched(command, published, tmp_path):
    refused = command("fetch", "sam_tiny", "sam_huge", "--mirror", published)
    assert (refused.code, "sam_huge" in refused.error, "sam_tiny, nafnet_tiny" in refused.error) == (2, True, True)
    assert not (tmp_path / "weights").exists()
    assert "--mirror" in command("fetch", "sam_tiny").error
    assert command("fetch", "sam_tiny").code == 2
    assert command("fetch", "sam_tiny", "--mirror", "s3://bucket").code == 2


def test_failures_are_one_line(command, published):
    with servers.refusing_server() as served:
        failed = command("fetch", "sam_tiny", "--mirror", served.url)
    assert (failed.code, "403" in failed.error) == (1, True)
    (published / "sam_tiny.pth").write_bytes(bytes(len(CONTENT)))
    failed = command("fetch", "sam_tiny", "--mirror", published)
    assert (failed.code, "SHA-256" in failed.error) == (1, True)
