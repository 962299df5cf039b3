"""Files behind http:// and https://, whatever the server makes of a request for a part of one.

A server's answer is never taken for data that it is not, nor for damage: redirects are followed and remembered until
what they lead to expires; a page in place of a file, parts that were not asked for, bodies that are cut off, compressed
or whole where a part was asked for are told apart by the head of the answer.
"""

from __future__ import annotations

import itertools
import os
import re
import ssl
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import HTTPError, NewConnectionError, ProxyError, SSLError, TimeoutError

from samdeblur.storage.access import files
from samdeblur.storage.access.files import Part, Refused, Unreachable
from samdeblur.storage.access.location import Location, without_secrets

if TYPE_CHECKING:
    from samdeblur.storage.access.direct import Direct

AT_ONCE = 16  # requests, and connections to a host that are kept
TRIES = 6
REDIRECTS = (301, 302, 303, 307, 308)
MAX_REDIRECTS = 10
BUSY = (408, 425, 429, 500, 502, 503, 504)
MAX_WAIT = 10.0  # seconds that a busy server may ask for
SLOWEST = 16384  # bytes a second; a body that comes slower is given up
PAGES = re.compile(r"text/html|application/xhtml|(application|text)/(json|xml)")
AUTHORITIES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
SENT = re.compile(r"bytes (\d+)-(\d+)/")
PLAIN = re.compile(r"[A-Za-z0-9._/-]*")
PAGE = "the server sends a web page in place of this file; it is not there, or asks for a login"
NO_PARTS = (
    "the server does not send parts of files (HTTP Range); serve the store with one that does, such as nginx, caddy or "
    "rclone serve, or download it"
)


@dataclass(frozen=True)
class Answer:
    """What a server said; the body is None where it was not what was asked for, and was not read."""

    status: int
    headers: Mapping[str, str]
    body: bytes | None

    @property
    def range(self) -> tuple[int, int | None] | None:
        """First byte of what was sent, and the size of the file, where the server says so."""
        found = re.match(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", self.headers.get("Content-Range", ""))
        return found and (int(found[1] or 0), int(found[2]) if found[2] != "*" else None)


class Web:
    """A folder behind a server; the address may end in a query, which goes along with every file's.

    Args:
        headers: for the server of this address alone, such as a token; other servers, by redirects, do not see them.
        advice: what to do when it refuses.
        shown: the address to speak of, when it is another.
    """

    gap = 32768

    def __init__(
        self,
        folder: Location,
        headers: Mapping[str, str] | None = None,
        advice: str = "",
        shown: Location | None = None,
    ) -> None:
        url = urlsplit(folder.text)
        user, at, host = url.netloc.rpartition("@")
        self._folder = shown or folder
        self._base = Location(urlunsplit(url._replace(netloc=host)))
        self._headers = dict(headers or {})
        if at:
            self._headers["Authorization"] = f"Basic {b64encode(unquote(user).encode()).decode()}"
        self._advice = advice
        self._targets: dict[str, str] = {}  # address -> where its redirects lead
        self._urls: dict[str, str] = {}  # address of each file
        self._moved = ""  # where they lead to for any file of the folder, if they kept its path
        self._suffixes = True  # whether the server knows `bytes=-n`
        self._checked: set[str] = set()  # files that are sent as pages, and are none
        self._own_name = ""  # last word of the address
        self._direct: Direct | None = None  # once the server was seen to do as the standard says

    def get_all(self, wanted: Sequence[tuple[str, Part]]) -> list[bytes | None]:
        if self._direct and (spans := self._short_way(wanted)):
            found = self._direct.get_all(spans)
            return [
                self._get(*item) if content is None else content for item, content in zip(wanted, found, strict=True)
            ]
        if len(wanted) == 1:
            return [self._get(*wanted[0])]
        return list(_workers(os.getpid()).map(lambda item: self._get(*item), wanted))

    def _get(self, name: str, part: Part) -> bytes | None:
        if part is None:
            return self._whole(name)
        if part.start is not None and part.start < 0:
            return self._end(name, -part.start)
        return self._part(name, part.start or 0, part.stop)

    def _whole(self, name: str) -> bytes | None:
        answer = self._request_patiently(name, None)
        return None if answer is None else answer.body

    def _part(self, name: str, first: int, last: int) -> bytes | None:
        found = b""
        while first < last:  # a server may send less than it is asked for
            answer = self._request_patiently(name, (first, last))
            if answer is None:
                return None
            if answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not (body := answer.body):
                break
            if answer.status == HTTPStatus.OK:
                return body[first:last]
            start, size = answer.range or (first, None)
            if start != first or len(body) > last - first:
                raise self._unreachable(name, "the server sends other parts of the file than it is asked for")
            if self._direct is None and answer.range and len(body) == last - first:
                self._direct = self._find_direct()
            found, first = found + body, first + len(body)
            if size is None or first >= size:
                break
        return found

    def _find_direct(self) -> Direct | None:
        """The short way to parts of files, where neither redirects, queries nor proxies are in between."""
        url = urlsplit(self._base.text)
        folder, _, self._own_name = self._base.text.rpartition("/")
        if url.query or self._targets or _proxy(_origin(self._base.text)) or not PLAIN.fullmatch(self._own_name):
            return None
        from samdeblur.storage.access.direct import Direct

        return Direct(folder, self._headers)

    def _short_way(self, wanted: Sequence[tuple[str, Part]]) -> list[tuple[str, int, int]]:
        """Paths, first and last bytes of parts for `Direct`; nothing when one of them is no part between two bytes."""
        spans = [
            (f"{self._own_name}/{name}" if name else self._own_name, part.start, part.stop)
            for name, part in wanted
            if part is not None and part.stop is not None and 0 <= part.start < part.stop and PLAIN.fullmatch(name)
        ]
        return spans if len(spans) == len(wanted) else []

    def _end(self, name: str, length: int) -> bytes | None:
        if self._suffixes:
            answer = self._request_patiently(name, (-length, 0), may_refuse=True)
            if answer is None:
                return None
            if answer.body is not None and answer.status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
                start, size = answer.range or (0, None)
                if len(answer.body) <= length and (size is None or start + len(answer.body) == size):
                    return answer.body
        size = self._size(name)
        if size is None:
            return None
        found = self._part(name, max(0, size - length), size)
        self._suffixes = size < length and self._suffixes
        return found

    def _size(self, name: str) -> int | None:
        answer = self._request_patiently(name, (0, 1))
        if answer is None:
            return None
        if answer.range and answer.range[1] is not None:
            return answer.range[1]
        if answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return 0
        if answer.status == HTTPStatus.PARTIAL_CONTENT:
            answer = self._request_patiently(name, None, method="HEAD")
        length = answer.headers.get("Content-Length", "") if answer else ""
        if not length.isdecimal():
            raise self._unreachable(name, "the server does not say how large the file is")
        return int(length)

    def _request_patiently(
        self, name: str, part: tuple[int, int] | None, method: str = "GET", may_refuse: bool = False
    ) -> Answer | None:
        """One answer, after as many tries as there is time for. None for a file that is not there.

        Args:
            part: first and last byte, exclusive; or -n, 0 for the end.
            may_refuse: an answer that says no to `part` is returned as well, without a body.
        """
        headers = {"Accept-Encoding": "identity"}
        if part is not None:
            headers["Range"] = f"bytes={part[0]}-{part[1] - 1}" if part[0] >= 0 else f"bytes={part[0]}"
        started = time.monotonic()
        for attempt in itertools.count(1):
            wait, busy = min(0.2 * 2 ** (attempt - 1), MAX_WAIT), False
            try:
                response = self._follow(name, method, headers, started + files.TIMEOUT)
                try:
                    if response.status not in BUSY:
                        return self._check_answer(name, part, response, method, may_refuse)
                    reason = _said(response)
                    asked = response.headers.get("Retry-After", "")
                    wait = min(max(float(asked), wait), MAX_WAIT) if asked.isdecimal() else wait
                    busy = True
                finally:
                    response.release_conn() if response.length_remaining == 0 else response.close()
            except (HTTPError, OSError) as error:
                if isinstance(error, Unreachable):
                    raise
                reason = self._failure(name, error)
            left = started + files.TIMEOUT - time.monotonic() - wait
            if left <= 0:
                raise self._unreachable(name, f"no answer within {files.TIMEOUT:.0f} s ({reason})")
            if attempt >= TRIES and not busy:
                raise self._unreachable(name, f"no answer ({reason})")
            time.sleep(wait)
        raise AssertionError("not reached")

    def _check_answer(
        self, name: str, part: tuple[int, int] | None, response: urllib3.BaseHTTPResponse, method: str, may_refuse: bool
    ) -> Answer | None:
        """The answer for what it is. Raises Unreachable for one that is of no use."""
        status, headers = response.status, response.headers
        if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
            return None
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and part is not None:
            return Answer(status, headers, None)
        if status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
            if may_refuse and status in (HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_IMPLEMENTED):
                return Answer(status, headers, None)
            raise self._refused(name, self._refusal(response))
        if part is not None:
            if status == HTTPStatus.OK:
                length = headers.get("Content-Length", "")
                most = -part[0] if part[0] < 0 else part[1] if part[0] == 0 else -1
                if not length.isdecimal() or int(length) > most:
                    if PAGES.match(headers.get("Content-Type", "")) and _is_page(name, response.read1(1024)):
                        raise self._refused(name, PAGE)
                    if may_refuse:
                        return Answer(status, headers, None)
                    raise self._unreachable(name, NO_PARTS)
            elif headers.get("Content-Encoding", "identity") != "identity":
                raise self._unreachable(name, "the server compresses what it sends, and parts of that are of no use")
            elif headers.get("Content-Type", "").startswith("multipart/"):
                raise self._unreachable(name, "the server sends parts of files in a form of its own (multipart)")
        body = _body(response) if method == "GET" else None
        if body is not None and PAGES.match(headers.get("Content-Type", "")):
            self._check_page(name, part, body)
        span = SENT.match(headers.get("Content-Range", ""))
        if body is not None and span and len(body) != int(span[2]) - int(span[1]) + 1:
            raise self._unreachable(name, "the server sends another part of the file than it says; look at its proxies")
        return Answer(status, headers, body)

    def _check_page(self, name: str, part: tuple[int, int] | None, body: bytes) -> None:
        """Raise Unreachable for a file that is sent as a page, and begins like one."""
        if name in self._checked:
            return
        self._checked.add(name)
        if part is not None and part[0] != 0:
            start = self._request_patiently(name, (0, 64))
            body = (start and start.body) or b""
        if _is_page(name, body):
            self._checked.discard(name)
            raise self._refused(name, PAGE)

    def _follow(self, name: str, method: str, headers: Mapping[str, str], until: float) -> urllib3.BaseHTTPResponse:
        """The response at the end of the redirects, its body not read."""
        url = self._urls.get(name) or self._urls.setdefault(name, (self._base / name).text if name else self._base.text)
        target = self._targets.get(url) or (self._moved and f"{self._moved}{_written(name)}") or url
        remembered = target != url
        for _ in range(MAX_REDIRECTS):
            origin = _origin(target)
            own = self._headers if self._headers and origin == _origin(url) else {}
            left = max(0.001, until - time.monotonic())
            response = _pool(_proxy(origin), os.getpid()).request(
                method,
                target,
                headers={**headers, **own},
                redirect=False,
                retries=False,
                preload_content=False,
                timeout=urllib3.Timeout(connect=min(left, files.TIMEOUT / 6), read=min(left, files.TIMEOUT / 4)),
            )
            if response.status in REDIRECTS and (leads := response.headers.get("Location")):
                response.close()
                target = urljoin(target, leads)
                if urlsplit(target).scheme not in ("http", "https"):
                    raise self._unreachable(name, f"it leads to another kind of address, {without_secrets(target)}")
                continue
            refused = 400 <= response.status < 500 and response.status not in (*BUSY, 416)
            if remembered and refused:  # what it led to has expired, or was for other files
                response.close()
                self._targets.pop(url, None)
                self._moved, target, remembered = "", url, False
                continue
            if target != url and not refused:
                self._remember(url, name, target)
            return response
        raise self._unreachable(name, f"more than {MAX_REDIRECTS} redirects")

    def _remember(self, url: str, name: str, target: str) -> None:
        self._targets[url] = target
        written = _written(name)
        if name and urlsplit(target).query == "" == self._base.query and target.endswith(f"/{written}"):
            self._moved = target.removesuffix(written)

    def _refusal(self, response: urllib3.BaseHTTPResponse) -> str:
        if response.status == HTTPStatus.UNAUTHORIZED:
            return f"the server asks for a login ({_said(response)})" + (self._advice and f"; {self._advice}")
        if response.status == HTTPStatus.FORBIDDEN:
            advice = self._advice or (
                "the signature in the address may have expired"
                if self._folder.query
                else "it is not public, or (in a bucket that is not listed) not there"
            )
            return f"the server refuses it ({_said(response)}); {advice}"
        return f"the server refuses it ({_said(response)})"

    def _failure(self, name: str, error: Exception) -> str:
        """Why there is no answer. Raises Unreachable for what does not change."""
        if isinstance(error, ProxyError):
            return f"the proxy: {_brief(error.original_error)}"
        tls = isinstance(error, SSLError | ssl.SSLError)
        if tls and "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise self._unreachable(
                name,
                f"the server's certificate is not trusted ({_brief(error)}); set SSL_CERT_FILE to the file with "
                "the certificate of its authority",
            )
        if tls and "WRONG_VERSION_NUMBER" in str(error):
            raise self._unreachable(name, "the server does not speak TLS; write http:// for it")
        if isinstance(error, NewConnectionError):
            return f"no connection: {_brief(error).rpartition(': ')[2]}"
        if isinstance(error, TimeoutError):
            return "silence"
        return _brief(error)

    def _unreachable(self, name: str, reason: str) -> Unreachable:
        return Unreachable(self._line(name, reason))

    def _refused(self, name: str, reason: str) -> Refused:
        return Refused(self._line(name, reason))

    def _line(self, name: str, reason: str) -> str:
        return f"{self._folder / name if name else self._folder}: {reason}"


def _body(response: urllib3.BaseHTTPResponse) -> bytes:
    """All of it. Raises OSError for one that is cut off, or slower than SLOWEST."""
    pieces, size, started = [], 0, time.monotonic()
    while piece := response.read1(1 << 20, decode_content=True):
        pieces.append(piece)
        size += len(piece)
        if time.monotonic() - started > files.TIMEOUT / 2 + size / SLOWEST:
            raise OSError(f"{size} bytes in {files.TIMEOUT / 2:.0f} s")
    expected = response.headers.get("Content-Length", "")
    plain = expected.isdecimal() and "Content-Encoding" not in response.headers
    if plain and size != int(expected):
        raise OSError(f"{size} of {expected} bytes were sent")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _is_page(name: str, body: bytes) -> bool:
    start = body.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    return start == b"<" or (start in (b"{", b"[") and not name.endswith(".json"))


def _said(response: urllib3.BaseHTTPResponse) -> str:
    return f"HTTP {response.status} {response.reason or ''}".strip()


def _brief(error: Exception | None) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return without_secrets(re.sub(r"^<[^>]*>: |^\w*Connection\w*\([^)]*\): ", "", text))[:160]


def _written(name: str) -> str:
    return (Location("http://x") / name).text.removeprefix("http://x/")


@lru_cache(4096)
def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


@lru_cache(256)
def _proxy(origin: tuple[str, str]) -> str:
    """The proxy that the environment names for an address; nothing where there is none."""
    scheme, host = origin
    found = getproxies().get(scheme, "")
    return found if found and not proxy_bypass(host.rpartition("@")[2]) else ""


@cache
def _pool(proxy: str, process: int) -> urllib3.PoolManager:
    authorities = next((os.environ[name] for name in AUTHORITIES if os.environ.get(name)), None)
    if proxy:
        return urllib3.ProxyManager(proxy, maxsize=AT_ONCE, ca_certs=authorities)
    return urllib3.PoolManager(maxsize=AT_ONCE, ca_certs=authorities)


@cache
def _workers(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(AT_ONCE, "samdeblur-http")
