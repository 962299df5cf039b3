"""Where stores lie: on a disk, behind a server, in a bucket. Addresses are taken apart, and shown without secrets."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from os.path import realpath
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

WEB = ("http", "https")
BUCKETS = ("s3", "gs", "az")  # what follows is a key as it is: no query, no fragment, nothing quoted
HUB = ("hf",)
SCHEMES = (*WEB, *BUCKETS, *HUB)

_USER = r"(?:[^\s/'\"]*@|[^\s/:@'\"\[]*:(?!\d*(?:[/?#\s'\"]|$))[^\s'\"]*@)?"  # its password may hold any of @ / ? #
_SECRETS = re.compile(rf"(?P<scheme>\w+://){_USER}(?P<rest>[^\s?'\"<>]*)(?P<query>\?[^\s'\"<>]*)?")
_TOKENS = re.compile(r"(#[^\s'\"<>]*?\w*(?:token|sig|key|secret|password)\w*=)[^\s'\"<>]+", re.IGNORECASE)


@dataclass(frozen=True)
class Location:
    """A folder or file: a path, or an address of one of SCHEMES.

    As text it has no user, no password and no query, which may be a signature: `text` is for opening alone.

    Raises:
        ValueError: another kind of address.
    """

    text: str = field(repr=False)
    real: str = field(init=False, repr=False, compare=False, default="")  # of a path: absolute, when it entered

    def __post_init__(self) -> None:
        if not self.remote:
            object.__setattr__(self, "real", realpath(self.text))
            return
        if self.scheme not in SCHEMES:
            raise ValueError(f"not a path, nor an address that begins with {', '.join(f'{s}://' for s in SCHEMES)}")
        if self.scheme in WEB:
            _require_port(self.text)
        if self.scheme in WEB and urlsplit(self.text).fragment:
            raise ValueError("an address with #; write %23 for it")
        if not self._parts[1].split("@")[-1]:
            raise ValueError("an address without a host or bucket")

    def __str__(self) -> str:
        return without_secrets(self.text) if self.scheme in (*WEB, *HUB) else self.text

    def __truediv__(self, name: str) -> Location:
        if not self.remote:
            return Location(str(self.path / name))
        return self._at("/".join(part for part in (self._parts[2].rstrip("/"), self._written(name)) if part))

    @property
    def remote(self) -> bool:
        return "://" in self.text

    @property
    def scheme(self) -> str:
        """Of an address; nothing for a path."""
        return self.text.split("://", 1)[0].lower() if self.remote else ""

    @property
    def path(self) -> Path:
        """The path on a disk, of a location that is not remote; whole, as TensorStore takes no ".."."""
        return Path(self.real)

    @property
    def key(self) -> str:
        """What follows the bucket in an address of one, or the repository's user on a hub."""
        return self._parts[2].strip("/")

    @property
    def bucket(self) -> str:
        return self._parts[1]

    @property
    def query(self) -> str:
        return self._parts[3]

    @property
    def name(self) -> str:
        if not self.remote:
            return self.path.absolute().name
        name = self._parts[2].rstrip("/").rpartition("/")[2]
        return unquote(name) if self.scheme in WEB else name

    @property
    def parent(self) -> Location:
        if not self.remote:
            return Location(str(self.path.absolute().parent))
        return self._at(self._parts[2].rstrip("/").rpartition("/")[0])

    def _written(self, name: str) -> str:
        """A path as this kind of address writes it."""
        return quote(name) if self.scheme in WEB else name

    def _at(self, path: str) -> Location:
        scheme, host, _, query = self._parts
        if self.scheme in WEB:
            return Location(urlunsplit((scheme, host, path, query, "")))
        return Location(f"{scheme}://{host}/{path.lstrip('/')}")

    @property
    def _parts(self) -> tuple[str, str, str, str]:
        """Scheme, host or bucket, path, query."""
        if self.scheme in WEB:
            url = urlsplit(self.text)
            return url.scheme, url.netloc, url.path, url.query
        host, slash, path = self.text.split("://", 1)[1].partition("/")
        return self.scheme, host, slash + path, ""


def without_secrets(text: str) -> str:
    """A text whose addresses have no user, no password, no query, and no token of a hub."""

    def hidden(found: re.Match[str]) -> str:
        return found["scheme"] + found["rest"] + ("?..." if found["query"] else "")

    return re.sub(r"\bhf_\w{8,}", "hf_...", _TOKENS.sub(r"\1...", _SECRETS.sub(hidden, text)))


def _require_port(address: str) -> None:
    """Raise ValueError, without what may be a secret, for an address whose port is none."""
    try:
        urlsplit(address).port  # noqa: B018 - it is read to be checked
    except ValueError:
        raise ValueError(
            "what follows its host is not a port; in a user's name or password write %3A for :, %2F for /, %40 for @"
        ) from None
