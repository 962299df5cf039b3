"""Local servers that count what they send. For the fixtures of conftest.py."""

from __future__ import annotations

import http.client
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import boto3
import pytest
from moto.server import ThreadedMotoServer


@dataclass
class Served:
    """Where a server listens, and the (path, bytes) it has sent or begun to send."""

    url: str
    sent: list[tuple[str, int]] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.sent)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # or each answer waits for the acknowledgement of its headers

    def __init__(self, served: Served, *args: object) -> None:
        self.served = served
        super().__init__(*args)  # type: ignore[arg-type]

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.served.sent.append((self.path, len(body)))  # before: the client may look as soon as it has it
            self.wfile.write(body)


class _Folder(_Handler):
    """Files of a folder; `ranges=False` is a server that always sends whole files."""

    def __init__(self, folder: Path, ranges: bool, *args: object) -> None:
        self.folder, self.ranges = folder, ranges
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        file = self.folder / unquote(urlsplit(self.path).path).lstrip("/")
        if not file.is_file():
            self.answer(404, b"no such file")
            return
        size, wanted = file.stat().st_size, re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not (wanted and self.ranges):
            self.answer(200, file.read_bytes())
            return
        first, last = wanted.groups()
        start = int(first) if first else max(0, size - int(last))
        stop = min(size, int(last) + 1) if first and last else size
        if start >= size:
            self.answer(416, b"", {"Content-Range": f"bytes */{size}"})
            return
        with open(file, "rb") as content:
            content.seek(start)
            self.answer(206, content.read(stop - start), {"Content-Range": f"bytes {start}-{stop - 1}/{size}"})

    do_HEAD = do_GET


class _Proxy(_Handler):
    """Passes everything on to another server."""

    def __init__(self, behind: str, *args: object) -> None:
        self.behind = behind
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        connection = http.client.HTTPConnection(self.behind)
        connection.request(self.command, self.path, body, dict(self.headers))
        response = connection.getresponse()
        dropped = ("content-length", "transfer-encoding", "connection", "date", "server")
        headers = {name: value for name, value in response.getheaders() if name.lower() not in dropped}
        self.answer(response.status, response.read(), headers)
        connection.close()

    do_HEAD = do_GET
    do_PUT = do_GET


class _Silent(_Handler):
    """Takes requests and never answers, until the server ends."""

    ended = threading.Event()

    def do_GET(self) -> None:
        self.ended.wait()
        self.close_connection = True


class _Refusing(_Handler):
    def do_GET(self) -> None:
        self.answer(403, b"forbidden")


@contextmanager
def _serve(handler: object, *args: object) -> Iterator[Served]:
    served = Served("")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, *args, served))  # type: ignore[operator]
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield served
    finally:
        _Silent.ended.set()
        server.shutdown()
        server.server_close()
        _Silent.ended.clear()


@contextmanager
def folder_server(folder: Path, ranges: bool = True) -> Iterator[Served]:
    with _serve(_Folder, folder, ranges) as served:
        yield served


@contextmanager
def bucket_server(folder: Path) -> Iterator[Served]:
    """An S3 server with the files of a folder; its url is their address, and the environment leads there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        moto.start()
        host, port = moto.get_host_and_port()
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket="masks")
        for place, _, files in os.walk(folder, followlinks=True):
            for file in files:
                path = Path(place) / file
                client.upload_file(str(path), "masks", f"shared/{path.relative_to(folder)}")
        with proxy_server(f"{host}:{port}") as served:
            patch.setenv("AWS_ENDPOINT_URL", served.url)
            served.url = "s3://masks/shared"
            yield served
        moto.stop()


@contextmanager
def proxy_server(behind: str) -> Iterator[Served]:
    with _serve(_Proxy, behind) as served:
        yield served


@contextmanager
def silent_server() -> Iterator[Served]:
    with _serve(_Silent) as served:
        yield served


@contextmanager
def refusing_server() -> Iterator[Served]:
    with _serve(_Refusing) as served:
        yield served
