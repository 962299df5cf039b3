"""A stand-in of the Hugging Face Hub, spoken to by the real huggingface_hub: repositories in memory, LFS, commits.

Large files are served from another port by addresses that are signed and expire, as the Hub does.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_standInTokenThatAppearsNowhere"
COMMIT = "a" * 40


@dataclass
class Hub:
    """What the stand-in holds, and what was asked of it."""

    url: str = ""
    storage: str = ""  # the address that large files come from
    private: bool = True
    uses: int = 1 << 30  # of a signed address
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)  # SHA-256 -> content
    asked: list[str] = field(default_factory=list)
    signed: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def sign(self) -> str:
        with self.lock:
            name = secrets.token_hex(8)
            self.signed[name] = self.uses
            return name


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16
    hub: Hub

    def log_message(self, *args: object) -> None:
        pass

    def say(self, status: int, body: bytes | dict | list = b"", **headers: str) -> None:
        if not isinstance(body, bytes):
            body, headers = json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))


class _Front(_Handler):
    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.private and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.body()
            self.say(401, {"error": "Invalid username or password."}, X_Error_Message="Invalid username or password.")
            return
        body = self.body()
        for pattern, answer in (
            (r"POST /api/repos/create", self.create),
            (r"POST /api/validate-yaml", lambda body: self.say(200, {"errors": [], "warnings": []})),
            (r"POST /api/datasets/(\w+/[\w.-]+)/preupload/main", self.preupload),
            (r"POST /api/datasets/(\w+/[\w.-]+)/paths-info/main", self.paths_info),
            (r"POST /api/datasets/(\w+/[\w.-]+)/commit/main", self.commit),
            (r"GET /api/(?:datasets|models)/(\w+/[\w.-]+)(?:/revision/(?:main|a{40}))?", self.info),
            (r"GET /api/models/(\w+/[\w.-]+)/tree/(?:main|a{40})", self.tree),
            (r"POST /datasets/(\w+/[\w.-]+)\.git/info/lfs/objects/batch", self.batch),
            (r"(?:GET|HEAD) /(?:datasets/)?(\w+/[\w.-]+)/resolve/(?:main|a{40})/(.+)", self.resolve),
        ):
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                answer(body, *found.groups())
                return
        self.say(404, {"error": f"not in the stand-in: {self.command} {path}"})

    do_POST = do_HEAD = do_PUT = do_GET

    def create(self, body: bytes) -> None:
        wanted = json.loads(body)
        name = f"{wanted['organization']}/{wanted['name']}"
        new = name not in self.hub.repositories
        self.hub.repositories.setdefault(name, {})
        about = {"url": f"{self.hub.url}/datasets/{name}", "id": name, "name": name}
        self.say(200, about) if new else self.say(409, {"error": "You already created this dataset repo", **about})

    def info(self, body: bytes, name: str) -> None:
        if name not in self.hub.repositories:
            self.say(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return
        files = [{"rfilename": path} for path in self.hub.repositories[name]]
        self.say(200, {"id": name, "sha": COMMIT, "private": True, "siblings": files, "tags": [], "downloads": 0})

    def tree(self, body: bytes, name: str) -> None:
        held = self.hub.repositories[name].items()
        self.say(200, [{"type": "file", "path": path, "size": len(data), "oid": "0" * 40} for path, data in held])

    def preupload(self, body: bytes, name: str) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".zip") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self.say(200, {"files": files})

    def paths_info(self, body: bytes, name: str) -> None:
        text = body.decode()
        wanted = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text)["paths"]
        found = []
        for path in wanted:
            content = self.hub.repositories.get(name, {}).get(path)
            if content is None:
                continue
            oid = content.decode(errors="replace").removeprefix("lfs:")
            large = (
                {"oid": oid, "size": len(self.hub.large[oid]), "pointerSize": 100} if oid in self.hub.large else None
            )
            about = {"type": "file", "oid": "0" * 40, "path": path, "size": large["size"] if large else len(content)}
            found.append(about | ({"lfs": large} if large else {}))
        self.say(200, found)

    def batch(self, body: bytes, name: str) -> None:
        objects = []
        for item in json.loads(body)["objects"]:
            here = item["oid"] in self.hub.large  # what has arrived is not asked for again
            upload = {"href": f"{self.hub.storage}/{item['oid']}?sig={self.hub.sign()}", "header": {}}
            objects.append({**item, "authenticated": True} | ({} if here else {"actions": {"upload": upload}}))
        self.say(200, {"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")

    def commit(self, body: bytes, name: str) -> None:
        files = self.hub.repositories[name]
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                assert value["oid"] in self.hub.large
                files[value["path"]] = f"lfs:{value['oid']}".encode()
        self.say(
            200, {"commitUrl": f"{self.hub.url}/datasets/{name}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
        )

    def resolve(self, body: bytes, name: str, path: str) -> None:
        content = self.hub.repositories.get(name, {}).get(path)
        about = {"X_Repo_Commit": COMMIT, "ETag": f'"{hashlib.sha1(content or b"").hexdigest()}"'}
        if content is None:
            self.say(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", **about)
        elif content.startswith(b"lfs:"):
            oid = content.decode().removeprefix("lfs:")
            size = str(len(self.hub.large[oid]))
            where = f"{self.hub.storage}/{oid}?Expires=1&Signature={self.hub.sign()}"
            self.say(302, b"moved", Location=where, X_Linked_Size=size, X_Linked_Etag=f'"{oid}"', **about)
        else:
            part(self, content, **about)


class _Storage(_Handler):
    """Refuses whoever brings a token, and addresses that have run out."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query, oid = parse_qs(url.query), url.path.strip("/")
        body, name = self.body(), (query.get("Signature") or query.get("sig") or [""])[0]
        self.hub.asked.append(f"{self.command} storage")
        with self.hub.lock:
            left = self.hub.signed.get(name, 0)
            self.hub.signed[name] = left - 1
        if left <= 0 or "Authorization" in self.headers:
            self.say(403, b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>")
        elif self.command == "PUT":
            assert hashlib.sha256(body).hexdigest() == oid
            self.hub.large[oid] = body
            self.say(200)
        else:
            part(self, self.hub.large[oid])

    do_PUT = do_HEAD = do_GET


def part(handler: _Handler, content: bytes, **headers: str) -> None:
    """The whole, or the range that is asked for."""
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", handler.headers.get("Range", ""))
    if not asked:
        handler.say(200, content, **headers)
        return
    size = len(content)
    first = int(asked[1]) if asked[1] else max(0, size - int(asked[2]))
    last = min(size, int(asked[2]) + 1) if asked[1] and asked[2] else size
    handler.say(206, content[first:last], Content_Range=f"bytes {first}-{last - 1}/{size}", **headers)


@contextmanager
def hub_server() -> Iterator[Hub]:
    """The stand-in, at `url`, until the block ends."""
    hub, servers = Hub(), []
    for name, kind in (("url", _Front), ("storage", _Storage)):
        server = ThreadingHTTPServer(("127.0.0.1", 0), type(kind.__name__, (kind,), {"hub": hub}))
        setattr(hub, name, f"http://127.0.0.1:{server.server_address[1]}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
