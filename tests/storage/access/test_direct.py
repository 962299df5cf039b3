"""The short way to parts of files: used where a server is sound, and never believed where it stops being so."""

from __future__ import annotations

import os

import pytest
from answering import PAGE, compressing, no_content_range, serving, short_parts

from samdeblur.storage import Unreachable
from samdeblur.storage.access.location import Location
from samdeblur.storage.access.web import Web

CONTENT = bytes(range(256)) * 400


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/data.bin").write_bytes(CONTENT)
    (tmp_path / "sub/tage bücher").mkdir()
    (tmp_path / "sub/tage bücher/data.bin").write_bytes(CONTENT)
    return tmp_path


def parts(web, name="data.bin", count=5):
    spans = [(2000 * n, 2000 * n + 1400) for n in range(count)]
    found = web.get_all([(name, slice(*span)) for span in spans])
    assert found == [CONTENT[slice(*span)] for span in spans]


def short(request):
    """Whether a request came by the short way."""
    return "object_store" in request.headers.get("User-Agent", "")


@pytest.mark.parametrize("path", ["sub", "sub/"])
def test_parts_of_a_sound_server_come_the_short_way(folder, path):
    with serving(folder, lambda request: request.sound()) as (url, asked):
        web = Web(Location(f"{url}/{path}"))
        parts(web, count=1)
        assert not any(map(short, asked))
        parts(web)
        assert [short(request) for request in asked[1:]] == [True] * 5


def test_a_file_by_its_own_address_comes_the_short_way(folder):
    with serving(folder, lambda request: request.sound()) as (url, asked):
        web = Web(Location(f"{url}/sub/data.bin"))
        parts(web, "", 1)
        parts(web, "")
        assert sum(map(short, asked)) == 5


@pytest.mark.parametrize("path", ["sub/tage%20b%C3%BCcher", "sub?signature=1"])
def test_addresses_that_are_written_in_several_ways_are_asked_with_care(folder, path):
    with serving(folder, lambda request: request.sound()) as (url, asked):
        web = Web(Location(f"{url}/{path}"))
        parts(web, count=1)
        parts(web)
        assert not any(map(short, asked))


def other_range(request):
    if request.part:
        request.part = request.part[0] + 1, request.part[1] + 1
    return request.sound()


@pytest.mark.parametrize("later", [no_content_range, short_parts, compressing])
def test_a_server_that_changes_its_ways_is_asked_with_care_again(folder, later):
    answer = lambda request: request.sound()  # noqa: E731
    with serving(folder, lambda request: answer(request)) as (url, asked):
        web = Web(Location(f"{url}/sub"))
        parts(web, count=1)
        parts(web)
        answer = later
        for _ in range(4):
            parts(web)
        del asked[:]
        parts(web)
        assert later is compressing or not any(map(short, asked))


@pytest.mark.parametrize(
    ("later", "said"),
    [
        (other_range, "other parts"),
        (lambda request: (200, {"Content-Type": "text/html"}, PAGE), "web page"),
        (lambda request: (403, {}, b"no"), "refuses"),
        (lambda request: (302, {"Location": "/elsewhere"}, b""), "redirects"),
    ],
)
def test_a_server_that_fails_later_is_named_for_what_it_does(folder, later, said):
    answer = lambda request: request.sound()  # noqa: E731
    with serving(folder, lambda request: answer(request)) as (url, _):
        web = Web(Location(f"{url}/sub"))
        parts(web, count=1)
        parts(web)
        answer = later
        with pytest.raises(Unreachable, match=said):
            parts(web)


def test_a_busy_moment_costs_a_second_try_and_no_more(folder):
    busy = 0

    def answer(request):
        nonlocal busy
        busy -= 1
        return (503, {}, b"busy") if busy >= 0 else request.sound()

    with serving(folder, answer) as (url, asked):
        web = Web(Location(f"{url}/sub"))
        parts(web, count=1)
        busy = 2
        parts(web, count=1)
        del asked[:]
        parts(web)
        assert all(map(short, asked))


def test_a_file_that_is_gone_is_none(folder):
    with serving(folder, lambda request: request.sound()) as (url, _):
        web = Web(Location(f"{url}/sub"))
        parts(web, count=1)
        assert web.get_all([("other.bin", slice(0, 5))]) == [None]
        assert web.get_all([("data.bin", slice(len(CONTENT), len(CONTENT) + 5))]) == [b""]
        assert web.get_all([("data.bin", slice(len(CONTENT) - 2, len(CONTENT) + 5))]) == [CONTENT[-2:]]


def test_a_login_goes_along_to_its_own_server(folder):
    with serving(folder, lambda request: request.sound()) as (url, asked):
        web = Web(Location(f"{url.replace('http://', 'http://name:word@')}/sub"))
        parts(web, count=1)
        parts(web)
        assert {request.headers.get("Authorization") for request in asked} == {"Basic bmFtZTp3b3Jk"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_asks_with_care(folder):
    with serving(folder, lambda request: request.sound()) as (url, _):
        web = Web(Location(f"{url}/sub"))
        parts(web, count=1)
        parts(web)
        child = os.fork()
        if not child:
            try:
                parts(web)
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
