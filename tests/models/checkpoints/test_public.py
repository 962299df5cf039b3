"""Fetching weights from local servers that behave and that do not."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import socket
import subprocess
import sys
import threading
import tracemalloc
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import servers

from samdeblur.models.checkpoints import public as weights
from samdeblur.models.checkpoints.loading import resolve_checkpoint
from samdeblur.models.checkpoints.public import (
    WEIGHTS,
    Weight,
    WeightsError,
    WeightsMissing,
    fetch,
    known_path,
    weights_folder,
)

CONTENT = np.random.default_rng(0).bytes(700_001)
HALF = 300_000
TINY = Weight(
    "tiny", "tiny.pth", len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), None, "https://page.invalid", "", ""
)


@pytest.fixture(autouse=True)
def quick_and_local(monkeypatch):
    monkeypatch.setattr(weights, "PAUSE", 0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def published(tmp_path):
    """A folder with the file."""
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / TINY.file).write_bytes(CONTENT)
    return tmp_path / "published"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "a folder" / "for weights"


@contextmanager
def scripted(*answers):
    """A server that gives these (status, headers, body) in turn, the last again and again; the Range of each request.

    Connections close after the body, also where Content-Length promises more; by default it is the body's.
    """
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            asked.append(self.headers["Range"])
            status, headers, body = answers[min(len(asked), len(answers)) - 1]
            self.send_response(status)
            for name, value in {"Content-Length": len(body), **headers}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


def part(first, stop=None):
    """An answer that promises everything from `first` on and ends before `stop`."""
    return (206 if first else 200), {"Content-Length": len(CONTENT) - first}, CONTENT[first:stop]


def test_a_download_is_whole_and_happens_once(published, folder):
    told = []
    with servers.folder_server(published) as served:
        weight = replace(TINY, address=f"{served.url}/{TINY.file}")
        path = fetch(weight, folder, progress=told.append)
        assert path.read_bytes() == CONTENT
        assert fetch(weight, folder) == path
        assert served.sent == [(f"/{TINY.file}", len(CONTENT))]
    assert sum(told) == len(CONTENT)
    assert [file.name for file in folder.iterdir()] == [TINY.file]
    assert fetch(TINY, folder) == path  # no address needed for what is there


def test_after_a_cut_connection_only_the_rest_travels(folder):
    with scripted(part(0, HALF), part(HALF)) as (mirror, asked):
        assert fetch(TINY, folder, mirror).read_bytes() == CONTENT
        assert asked == [None, f"bytes={HALF}-"]


def test_it_gives_up_after_three_cut_connections_and_goes_on_when_called_again(folder):
    parts = part(0, HALF), part(HALF, HALF + 1), part(HALF + 1, HALF + 2), part(HALF + 2)
    with scripted(*parts) as (mirror, asked):
        with pytest.raises(WeightsError, match=f"connection ended after {HALF + 2} of {len(CONTENT)} bytes"):
            fetch(TINY, folder, mirror)
        assert (folder / "tiny.pth.partial").stat().st_size == HALF + 2
        assert fetch(TINY, folder, mirror).read_bytes() == CONTENT
        assert asked == [None, *(f"bytes={HALF + n}-" for n in range(3))]


def test_an_interrupted_download_is_resumed(published, folder):
    def interrupt(n):
        if n:
            raise KeyboardInterrupt

    with servers.folder_server(published) as served:
        with pytest.raises(KeyboardInterrupt):
            fetch(TINY, folder, served.url, interrupt)
        there = (folder / "tiny.pth.partial").stat().st_size
        assert 0 < there < len(CONTENT)
        served.sent.clear()
        told = []
        assert fetch(TINY, folder, served.url, told.append).read_bytes() == CONTENT
        assert served.bytes == len(CONTENT) - there
        assert (told[0], sum(told)) == (there, len(CONTENT))


def test_a_server_without_ranges_makes_it_start_over(published, folder):
    folder.mkdir(parents=True)
    (folder / "tiny.pth.partial").write_bytes(CONTENT[:HALF])
    told = []
    with servers.folder_server(published, ranges=False) as served:
        assert fetch(TINY, folder, served.url, told.append).read_bytes() == CONTENT
        assert served.bytes == len(CONTENT)
    assert sum(told) == len(CONTENT)


@pytest.mark.parametrize("there", [CONTENT, CONTENT + b"more"], ids=["whole", "too long"])
def test_a_partial_file_that_is_not_shorter(published, folder, there):
    folder.mkdir(parents=True)
    (folder / "tiny.pth.partial").write_bytes(there)
    with servers.folder_server(published) as served:
        assert fetch(TINY, folder, served.url).read_bytes() == CONTENT
        assert served.bytes == (0 if there == CONTENT else len(CONTENT))


def test_other_bytes_are_deleted_and_said(folder):
    other = bytes(len(CONTENT))
    with scripted((200, {}, other), part(0)) as (mirror, _):
        with pytest.raises(WeightsError) as refused:
            fetch(TINY, folder, mirror)
        for words in ("tiny:", mirror, TINY.sha256, hashlib.sha256(other).hexdigest()):
            assert words in str(refused.value)
        assert not list(folder.iterdir())
        assert fetch(TINY, folder, mirror).read_bytes() == CONTENT


@pytest.mark.parametrize("status", [200, 206])
def test_a_page_instead_of_the_file_does_not_spoil_what_is_there(folder, status):
    folder.mkdir(parents=True)
    (folder / "tiny.pth.partial").write_bytes(CONTENT[:HALF])
    with scripted((status, {}, b"<html>log in"), part(HALF)) as (mirror, _):
        with pytest.raises(WeightsError, match=f"sends 12 bytes.*has {len(CONTENT)}"):
            fetch(TINY, folder, mirror)
        assert fetch(TINY, folder, mirror).read_bytes() == CONTENT


def test_a_file_of_that_name_that_is_another_is_left_alone(folder):
    folder.mkdir(parents=True)
    (folder / TINY.file).write_bytes(b"mine")
    with pytest.raises(WeightsError, match="not tiny, SHA-256"):
        fetch(TINY, folder, "http://127.0.0.1:9")
    assert (folder / TINY.file).read_bytes() == b"mine"


def test_a_missing_file_is_said_at_once_and_leaves_nothing(published, folder):
    with scripted((404, {}, b"")) as (mirror, asked):
        with pytest.raises(WeightsError, match=r"tiny: cannot reach .*404 Not Found") as refused:
            fetch(TINY, folder, mirror)
        assert len(asked) == 1
        assert f"put it into {folder}" in str(refused.value)
    assert not list(folder.iterdir())


def test_a_busy_server_is_asked_again(folder):
    with scripted((503, {}, b""), part(0)) as (mirror, asked):
        assert fetch(TINY, folder, mirror).read_bytes() == CONTENT
        assert len(asked) == 2


def test_without_a_connection(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        with pytest.raises(WeightsError, match=r"cannot reach .* \(Connection refused\); .* give --mirror"):
            fetch(TINY, folder, f"http://127.0.0.1:{taken.getsockname()[1]}")


def test_a_silent_server(monkeypatch, folder):
    monkeypatch.setattr(weights, "TIMEOUT", 0.1)
    with servers.silent_server() as served, pytest.raises(WeightsError, match="timed out"):
        fetch(TINY, folder, served.url)


@pytest.mark.parametrize("elsewhere", ["ftp://127.0.0.1/tiny.pth", "file:///etc/hostname", "data:,x"])
def test_redirects_to_other_schemes_are_refused(folder, elsewhere):
    with scripted((302, {"Location": elsewhere}, b"")) as (mirror, asked):
        with pytest.raises(WeightsError, match="302"):
            fetch(TINY, folder, mirror)
        assert len(asked) == 1


def test_redirects_are_followed_and_resumed(folder):
    with (
        scripted(part(0, HALF), part(HALF)) as (behind, asked),
        scripted((302, {"Location": f"{behind}/x"}, b"")) as (mirror, _),
    ):
        assert fetch(TINY, folder, mirror).read_bytes() == CONTENT
        assert asked == [None, f"bytes={HALF}-"]


def test_proxies_of_the_environment_are_used(monkeypatch, folder):
    with scripted(part(0)) as (proxy, asked):
        monkeypatch.setenv("http_proxy", proxy)
        assert fetch(TINY, folder, "http://weights.invalid").read_bytes() == CONTENT
        assert asked == [None]


@pytest.mark.parametrize("form", [str, Path.as_uri], ids=["folder", "file"])
def test_a_mirror_on_a_disk(published, folder, form):
    assert fetch(TINY, folder, form(published)).read_bytes() == CONTENT
    (published / TINY.file).unlink()
    with pytest.raises(WeightsError, match="No such file"):
        fetch(TINY, folder / "other", form(published))


@pytest.mark.parametrize("mirror", ["ftp://server", "s3://bucket", "http://[half", "http://", "file://elsewhere/x"])
def test_mirrors_that_are_none(folder, mirror):
    with pytest.raises(WeightsError, match=r"tiny: cannot reach|not a folder, nor"):
        fetch(TINY, folder, mirror)


def test_weights_without_an_address_say_where_they_are(folder):
    with pytest.raises(WeightsMissing, match=r"https://page.invalid .*--mirror"):
        fetch(TINY, folder)


def test_little_is_held_in_memory(published, folder):
    content = bytes(8_000_000)
    (published / TINY.file).write_bytes(content)
    weight = replace(TINY, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    tracemalloc.start()
    try:
        fetch(weight, folder, str(published))
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


def test_a_second_process_is_refused_and_goes_on_when_the_first_is_killed(published, folder):
    script = """
import os, sys
from pathlib import Path
from samdeblur.models.checkpoints.public import Weight, fetch

def tell_and_wait(n):
    if n:
        os.write(1, b"some")
        os.read(0, 1)

name, file, size, digest, folder, mirror = sys.argv[1:]
fetch(Weight(name, file, int(size), digest, None, "", "", ""), Path(folder), mirror, tell_and_wait)
"""
    with servers.folder_server(published) as served:
        arguments = ["tiny", TINY.file, str(TINY.bytes), TINY.sha256, str(folder), served.url]
        first = subprocess.Popen(
            [sys.executable, "-c", script, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with first:
            assert first.stdout.read(4) == b"some"
            with pytest.raises(WeightsError, match="another process is fetching it"):
                fetch(TINY, folder, served.url)
            first.kill()
        there = (folder / "tiny.pth.partial").stat().st_size
        served.sent.clear()
        assert fetch(TINY, folder, served.url).read_bytes() == CONTENT
        assert (there > 0, served.bytes) == (True, len(CONTENT) - there)


def test_one_that_opened_the_file_just_before_it_was_finished_keeps_off(monkeypatch, published, folder):
    def finish_first(file, operation):
        (folder / "tiny.pth.partial").rename(folder / TINY.file)

    monkeypatch.setattr(fcntl, "flock", finish_first)
    folder.mkdir(parents=True)
    (folder / "tiny.pth.partial").write_bytes(CONTENT)
    with pytest.raises(WeightsError, match="another process"):
        fetch(TINY, folder, str(published))
    assert (folder / TINY.file).read_bytes() == CONTENT


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_named(published, folder):
    folder.mkdir(parents=True)
    (folder / "tiny.pth.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as failed:
        fetch(TINY, folder, str(published))
    assert (failed.value.errno, failed.value.filename) == (errno.ENOSPC, str(folder / "tiny.pth.partial"))


def test_a_folder_that_cannot_be_made_is_named(published, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError) as failed:
        fetch(TINY, tmp_path / "file" / "folder", str(published))
    assert str(tmp_path / "file") in str(failed.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to_is_named(published, folder):
    folder.mkdir(parents=True)
    folder.chmod(0o500)
    with pytest.raises(PermissionError) as failed:
        fetch(TINY, folder, str(published))
    assert failed.value.filename == folder / "tiny.pth.partial"


def test_where_weights_lie(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("SAMDEBLUR_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative, which the standard says to ignore")
    assert weights_folder() == Path("/home/me/.cache/samdeblur/weights")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights_folder() == tmp_path / "samdeblur" / "weights"
    monkeypatch.setenv("SAMDEBLUR_WEIGHTS", "~/w")
    assert weights_folder() == Path("/home/me/w")


def test_names_stand_for_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("SAMDEBLUR_WEIGHTS", str(tmp_path))
    assert known_path("sam_vit_h.pth") is None
    with pytest.raises(WeightsMissing, match="samdeblur-prep weights fetch sam_vit_h"):
        known_path("sam_vit_h")
    path = tmp_path / WEIGHTS["sam_vit_h"].file
    path.write_bytes(b"")
    assert known_path("sam_vit_h") == str(path)


def test_the_table_is_consistent():
    assert len({weight.file for weight in WEIGHTS.values()}) == len(WEIGHTS) == 10
    for name, weight in WEIGHTS.items():
        assert (weight.name, len(bytes.fromhex(weight.sha256))) == (name, 32)
        assert weight.address is None or weight.address.endswith(f"/{weight.file}")


def test_a_public_file_that_is_not_there_says_where_it_comes_from(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMDEBLUR_WEIGHTS", str(tmp_path))
    for file, end in (
        ("sam_vit_h_4b8939.pth", "; samdeblur-prep weights fetch sam_vit_h fetches it"),
        ("NAFNet-GoPro-width32.pth", "; samdeblur-prep weights fetch nafnet_gopro_width32 says where to get it"),
        ("nowhere.pth", ""),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            resolve_checkpoint(Path("here") / file, Path("bundled"))
        assert str(caught.value) == f"here/{file}: no such checkpoint{end}"
    (tmp_path / "mobile_sam.pt").touch()
    with pytest.raises(FileNotFoundError, match=r"it is fetched already: name it mobile_sam$"):
        resolve_checkpoint(Path("here/mobile_sam.pt"), Path("bundled"))
