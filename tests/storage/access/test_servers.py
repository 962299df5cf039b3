"""What servers make of a request for a part of a file: it works, or is named for what it is; none is called damage."""

from __future__ import annotations

import gzip
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

import pytest
from answering import PAGE, Request, compressing, no_content_range, serving, short_parts

from samdeblur.storage import StoreError, Unreachable, open_store
from samdeblur.storage.access import files
from samdeblur.storage.sharing.export import export_zip
from samdeblur.storage.sharing.verify import verify_store

KEY = "nuit/été_夜"


@pytest.fixture(scope="module")
def folder(whole_store, tmp_path_factory):
    path = tmp_path_factory.mktemp("served")
    (path / "s.zarr").symlink_to(whole_store.path)
    export_zip(whole_store.path, path / "s.zip", images=True)
    return path


@pytest.fixture(params=["s.zarr", "s.zip"])
def name(request):
    return request.param


def no_suffix(status):
    def answer(request):
        if not request.suffix:
            return request.sound()
        return request.whole() if status == 200 else (status, {}, b"no such range")

    return answer


def html_types(request):
    return request.sound(**{"Content-Type": "text/html; charset=utf-8"})


def missing_is_forbidden(request):
    return (403, {}, b"<Error><Code>AccessDenied</Code></Error>") if request.content is None else request.sound()


def missing_is_a_page(request):
    return (200, {"Content-Type": "text/html"}, PAGE) if request.content is None else request.sound()


class Busy:
    """The first request of each file is refused for now."""

    def __init__(self):
        self.asked = set()

    def __call__(self, request):
        later = request.path not in self.asked
        self.asked.add(request.path)
        return (503, {"Retry-After": "0"}, b"later") if later else request.sound()


class CutOff:
    """The first answer with a file ends early."""

    def __init__(self):
        self.asked = set()

    def __call__(self, request):
        status, headers, body = request.sound()
        early = request.path not in self.asked
        self.asked.add(request.path)
        whole = {"Content-Length": str(len(body)), "Connection": "close"}
        return status, headers | whole, body[: len(body) // 2] if early else body


WORKING = {
    "sound": Request.sound,
    "suffixes give all": no_suffix(200),
    "suffixes give 400": no_suffix(400),
    "suffixes give 416": no_suffix(416),
    "suffixes give 501": no_suffix(501),
    "no Content-Range": no_content_range,
    "short parts": short_parts,
    "compressing whole files": compressing,
    "files called pages": html_types,
    "missing is 403": missing_is_forbidden,
    "missing is a page": missing_is_a_page,
    "busy": Busy,
    "cut off": CutOff,
}


@pytest.mark.parametrize("kind", WORKING)
def test_a_server_that_sends_parts_in_its_own_way_works(folder, name, kind, whole_store):
    answer = WORKING[kind]
    expected = open_store(whole_store.path)
    with serving(folder, answer() if isinstance(answer, type) else answer) as (url, _):
        store = open_store(f"{url}/{name}")
        for key in store.ready_keys:
            assert store.atoms(key) == expected.atoms(key)
        assert list(verify_store(f"{url}/{name}")) == []


def parts_compressed(request):
    status, headers, body = request.sound()
    return status, headers | {"Content-Encoding": "gzip"}, gzip.compress(body)


def other_parts(request):
    if request.part and request.part[0] > 0:
        request.part = request.part[0] - 1, request.part[1] - 1
    return request.sound()


def login(request):
    return 200, {"Content-Type": "text/html"}, PAGE


def error_page_for_chunks(request):
    return login(request) if "/c/" in request.path or request.path.endswith(".zip") else request.sound()


def multipart(request):
    status, headers, body = request.sound()
    return (
        (status, headers | {"Content-Type": "multipart/byteranges; boundary=x"}, body)
        if request.part
        else (200, {}, body)
    )


def parts_cut_short(request):
    """Shorter than they say they are."""
    status, headers, body = request.sound()
    return (status, headers, body[:-1]) if status == 206 else (status, headers, body)


REFUSED = {
    "parts cut short": (parts_cut_short, "another part"),
    "whole files alone": (Request.whole, "does not send parts of files"),
    "parts compressed": (parts_compressed, "compresses"),
    "other parts": (other_parts, "other parts"),
    "login": (login, "web page"),
    "error pages": (error_page_for_chunks, "web page"),
    "multipart": (multipart, "multipart"),
    "forbidden": (lambda request: (403, {}, b""), "HTTP 403"),
    "login asked for": (lambda request: (401, {}, b""), "HTTP 401"),
    "redirects in a circle": (lambda request: (302, {"Location": request.path}, b""), "redirects"),
    "redirect to another protocol": (lambda request: (302, {"Location": "ftp://x/y"}, b""), "ftp://x/y"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_server_that_cannot_be_read_from_is_named_for_what_it_does(folder, name, kind, whole_store):
    answer, words = REFUSED[kind]
    with serving(folder, answer) as (url, asked):
        with pytest.raises(Unreachable, match=words) as caught:
            open_store(f"{url}/{name}").atoms(KEY)
        assert "\n" not in str(caught.value)
        assert "damage" not in str(caught.value)
        assert len(asked) < 20


def test_a_server_that_sends_whole_files_alone_is_refused_before_they_are_read(tmp_path):
    """Its answer is longer than anyone would wait for."""
    sent = []

    class Endless(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(1 << 40))
            self.end_headers()
            try:
                while True:
                    sent.append(self.wfile.write(bytes(1 << 16)))
            except OSError:
                pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(Unreachable, match="does not send parts of files"):
        open_store(f"http://127.0.0.1:{server.server_address[1]}/x.zip")
    server.shutdown()
    server.server_close()
    assert sum(sent) < 64 << 20  # what the system takes before anyone reads


class Elsewhere:
    """Redirects to another host, whose addresses are signed and run out after a number of uses."""

    def __init__(self, status, uses, code=403):
        self.status, self.uses, self.code = status, uses, code
        self.there, self.given, self.left = "", 0, {}
        self.lock = threading.Lock()

    def front(self, request):
        if request.content is None:
            return 404, {}, b""
        with self.lock:
            self.given += 1
            self.left[f"Signature=s{self.given}"] = self.uses
            return self.status, {"Location": f"{self.there}{quote(request.path)}?Signature=s{self.given}"}, b"moved"

    def behind(self, request):
        assert "Authorization" not in request.headers
        with self.lock:
            left = self.left.get(request.query, 0)
            self.left[request.query] = left - 1
        return request.sound() if left > 0 else (self.code, {}, b"<Error>ExpiredToken</Error>")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(("uses", "code"), [(10**6, 403), (2, 403), (3, 400), (2, 401), (2, 404)])
def test_redirects_to_signed_addresses_are_followed_once_and_renewed(folder, name, status, uses, code, whole_store):
    place = Elsewhere(status, uses, code)
    with serving(folder, place.front) as (url, fronts), serving(folder, place.behind) as (place.there, _):
        store = open_store(f"{url.replace('://', '://user:secret@')}/{name}")
        expected = open_store(whole_store.path)
        for key in store.ready_keys:
            assert store.atoms(key) == expected.atoms(key)
        if uses > 100:
            assert len(fronts) == len({request.path for request in fronts})  # once for each file
        assert list(verify_store(f"{url}/{name}")) == []


def test_where_a_redirect_keeps_the_path_all_files_of_a_folder_are_asked_for_there(folder, whole_store):
    place = []
    with (
        serving(folder, lambda request: (302, {"Location": place[0] + quote(request.path)}, b"")) as (url, fronts),
        serving(folder, Request.sound) as (there, _),
    ):
        place.append(there)
        store = open_store(f"{url}/s.zarr")
        assert store.atoms(KEY) == open_store(whole_store.path).atoms(KEY)
    assert len(fronts) == 1


def test_a_password_goes_to_its_own_host(folder):
    def guarded(request):
        known = request.headers.get("Authorization") == "Basic dXNlcjpzZWNyZXQgMQ=="
        return request.sound() if known else (401, {}, b"")

    with serving(folder, guarded) as (url, _):
        store = open_store(f"{url.replace('://', '://user:secret%201@')}/s.zarr")
        assert store.atoms(KEY).n_masks
        assert "secret" not in f"{store.path} {store.path!r} {store.path / 'atoms'}"
        with pytest.raises(Unreachable, match="login") as caught:
            open_store(f"{url.replace('://', '://user:wrong@')}/s.zarr")
        assert "wrong" not in str(caught.value)


def test_nothing_is_asked_for_that_the_store_says_is_not_there(folder, whole_store, tmp_path):
    export_zip(whole_store.path, tmp_path / "masks.zip")
    zipfile.ZipFile(tmp_path / "masks.zip").extractall(tmp_path / "masks.zarr")
    with serving(tmp_path, missing_is_forbidden) as (url, asked):
        store = open_store(f"{url}/masks.zarr")
        for key in store.ready_keys:
            store.atoms(key)
            store.records(key)
        assert list(verify_store(f"{url}/masks.zarr")) == []
    assert [request.path for request in asked if request.content is None] == []


@pytest.mark.parametrize("path", ["/d/42", "/files/s.zip/content", "/S.ZIP", "/s?download=1", "/a%20b/%C3%A9"])
def test_a_zip_is_known_by_its_bytes(folder, path, whole_store):
    def answer(request):
        request.content = (folder / "s.zip").read_bytes() if "zarr.json" not in request.path else None
        if request.part and request.suffix:
            request.part = (
                max(0, len(request.content) - int(request.headers["Range"].split("-")[1])),
                len(request.content),
            )
        elif request.part:
            first, last = request.headers["Range"].removeprefix("bytes=").split("-")
            request.part = int(first), min(len(request.content or b""), int(last) + 1)
        return request.sound()

    with serving(folder, answer) as (url, _):
        assert open_store(f"{url}{path}").atoms(KEY) == open_store(whole_store.path).atoms(KEY)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5 files are read from a disk only"),
        (b"PK\x03\x04" + bytes(9999), "a damaged zip"),
        (b"neither nor", "neither a folder"),
        (b"", "neither a folder"),
    ],
)
def test_a_file_that_is_no_zip_is_named(tmp_path, content, words):
    (tmp_path / "42").write_bytes(content)
    with serving(tmp_path, Request.sound) as (url, _), pytest.raises(StoreError, match=words):
        open_store(f"{url}/42")


def test_opening_and_a_crop_take_few_requests(folder, whole_store):
    with serving(folder, Request.sound) as (url, asked):
        store = open_store(f"{url}/s.zarr")
        assert len(asked) == 5  # the metadata, four arrays of the index
        store.keys  # noqa: B018
        assert len(asked) == 6
        store.atoms(KEY, (0, 0, 32, 32))
        assert len(asked) == 10  # the ends of two shards, then the table, and the chunk
        store.atoms(KEY, (10, 100, 32, 32))
        assert len(asked) <= 11
    with serving(folder, Request.sound) as (url, asked):
        store = open_store(f"{url}/s.zip")
        store.keys  # noqa: B018
        assert len(asked) == 2  # the first bytes, and the end, where all but the shards lies
        store.atoms(KEY, (0, 0, 32, 32))
        assert len(asked) <= 4


@pytest.mark.parametrize("name", ["s.zarr", "s.zip"])
def test_verification_reads_a_share_once(folder, name):
    place = folder / name
    size = sum(file.stat().st_size for file in [*place.rglob("*"), place] if file.is_file())
    with serving(folder, Request.sound) as (url, asked):
        assert list(verify_store(f"{url}/{name}")) == []
    parts = [request.part or (0, len(request.content)) for request in asked]
    assert sum(last - first for first, last in parts) < 1.1 * size + 200_000


def test_a_server_that_hangs_is_asked_again_within_the_time(folder, monkeypatch, whole_store):
    monkeypatch.setattr(files, "TIMEOUT", 4.0)
    released, hung = threading.Event(), []

    def answer(request):
        if not hung:
            hung.append(request)
            released.wait()
        return request.sound()

    with serving(folder, answer) as (url, _):
        try:
            assert open_store(f"{url}/s.zarr").keys == whole_store.keys
        finally:
            released.set()


def test_a_host_that_refuses_connections_is_one_line(monkeypatch):
    monkeypatch.setattr(files, "TIMEOUT", 0.5)
    with pytest.raises(Unreachable, match=r"no connection|refused") as caught:
        open_store("http://user:secret@127.0.0.1:9/x.zarr?sig=hidden")
    assert "secret" not in str(caught.value)
    assert "hidden" not in str(caught.value)
