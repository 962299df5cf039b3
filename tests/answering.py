"""Servers that answer requests for parts of files in ways of their own."""

from __future__ import annotations

import gzip
import re
import ssl
import threading
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

PAGE = b"<!DOCTYPE html><html><body>Sign in to go on</body></html>"


class Request:
    """A request of a store's file, and how a sound server answers it."""

    def __init__(self, folder, handler: BaseHTTPRequestHandler) -> None:
        self.path, self.query = unquote(urlsplit(handler.path).path), urlsplit(handler.path).query
        self.method, self.headers = handler.command, handler.headers
        file = folder / self.path.lstrip("/")
        self.content = file.read_bytes() if file.is_file() else None
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        self.suffix = bool(asked and not asked[1])
        size = len(self.content or b"")
        self.part = None
        if asked:
            first = max(0, size - int(asked[2])) if self.suffix else int(asked[1])
            self.part = first, size if self.suffix or not asked[2] else min(size, int(asked[2]) + 1)

    def whole(self, **headers):
        return (404, {}, b"") if self.content is None else (200, headers, self.content)

    def sound(self, **headers):
        if self.content is None or self.part is None:
            return self.whole(**headers)
        first, last = self.part
        if first >= len(self.content):
            return 416, {"Content-Range": f"bytes */{len(self.content)}"}, b""
        about = {"Content-Range": f"bytes {first}-{last - 1}/{len(self.content)}"}
        return 206, about | headers, self.content[first:last]


Answer = Callable[[Request], tuple[int, dict[str, str], bytes]]


@contextmanager
def serving(folder, answer: Answer, tls: ssl.SSLContext | None = None):
    """(address, requests) of a server on this machine."""
    asked: list[Request] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16

        def log_message(self, *args):
            pass

        def do_GET(self):
            request = Request(folder, self)
            asked.append(request)
            status, headers, body = answer(request)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


def no_content_range(request):
    status, headers, body = request.sound()
    return status, {name: value for name, value in headers.items() if name != "Content-Range"}, body


def short_parts(request):
    """No more than 1,000 bytes at once."""
    if request.part and not request.suffix:
        request.part = request.part[0], min(request.part[1], request.part[0] + 1000)
    return request.sound()


def compressing(request):
    status, headers, body = request.sound()
    if "gzip" in request.headers.get("Accept-Encoding", "") or status == 200:
        return status, headers | {"Content-Encoding": "gzip"}, gzip.compress(body)
    return status, headers, body
