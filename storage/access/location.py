"""Where stores lie: on a disk, behind http(s)://, or in S3. Their bytes come whole or by range, within a time limit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import tensorstore as ts

TIMEOUT = 60.0  # seconds for one answer, retries included
RETRIES = {"max_retries": 6, "initial_delay": "200ms", "max_delay": "5s"}
NO_ANSWER = (  # how TensorStore begins what it says of servers, not of data
    "UNAVAILABLE",
    "ABORTED",
    "DEADLINE_EXCEEDED",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "RESOURCE_EXHAUSTED",
)
AWS_CREDENTIALS = (  # where the default chain of AWS finds some
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_EC2_METADATA_DISABLED",
)


class Unreachable(ConnectionError):
    """A server that does not answer, refuses, or cannot send parts of files."""


@dataclass(frozen=True)
class Location:
    """A folder or file: a path, or an http://, https:// or s3:// address.

    Raises:
        ValueError: another kind of address.
    """

    text: str

    def __post_init__(self) -> None:
        if self.remote and self._url.scheme not in ("http", "https", "s3"):
            raise ValueError("not a path, nor an http://, https:// or s3:// address")
        if self.remote and self._url.fragment:
            raise ValueError("an address with #; write %23 for it")

    def __str__(self) -> str:
        return self.text

    def __truediv__(self, name: str) -> Location:
        if not self.remote:
            return Location(str(self.path / name))
        path = "/".join(part for part in (self._url.path.rstrip("/"), name) if part)
        return Location(urlunsplit(self._url._replace(path=path)))

    @property
    def remote(self) -> bool:
        return "://" in self.text

    @property
    def path(self) -> Path:
        """The path on a disk, of a location that is not remote."""
        return Path(self.text)

    @property
    def name(self) -> str:
        if not self.remote:
            return self.path.absolute().name
        name = self._url.path.rstrip("/").rpartition("/")[2]
        return unquote(name) if self._url.scheme != "s3" else name

    @property
    def parent(self) -> Location:
        if not self.remote:
            return Location(str(self.path.absolute().parent))
        return Location(urlunsplit(self._url._replace(path=self._url.path.rstrip("/").rpartition("/")[0])))

    def spec(self) -> dict[str, Any]:
        """This folder as TensorStore's key-value store; keys are paths inside it."""
        url = self._url
        if not self.remote:
            return {"driver": "file", "path": f"{self.path.absolute()}/"}
        if url.scheme != "s3":
            base = urlunsplit(url._replace(path=f"{url.path.rstrip('/')}/"))
            return {"driver": "http", "base_url": base, "context": {"http_request_retries": RETRIES}}
        folder = url.path.strip("/")
        spec: dict[str, Any] = {"driver": "s3", "bucket": url.netloc, "path": f"{folder}/" if folder else ""}
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        if endpoint:
            spec |= {"endpoint": endpoint, "aws_region": region or "us-east-1"}
        elif region:
            spec["aws_region"] = region
        known = any(name in os.environ for name in AWS_CREDENTIALS) or (Path.home() / ".aws").exists()
        credentials = {"type": "default" if known else "anonymous"}
        return spec | {"context": {"s3_request_retries": RETRIES, "aws_credentials": credentials}}

    @property
    def _url(self) -> Any:
        return urlsplit(self.text)


class Files:
    """The files under a location."""

    def __init__(self, folder: Location) -> None:
        self.folder = folder
        self._store = ts.KvStore.open(folder.spec()).result()

    def get(self, name: str, part: slice | None = None) -> bytes | None:
        """A file, or a part of it: slice(start, stop), or slice(-n, None) for its end.

        None when it is not there; nothing, or less than was asked for, when the file is shorter.

        Raises:
            Unreachable: no answer in time, a refusal, or a server that cannot send parts.
        """
        return self.get_all([(name, part)])[0]

    def get_all(self, wanted: Sequence[tuple[str, slice | None]]) -> list[bytes | None]:
        """Several at once; see `get`."""
        pending = [self._store.read(name, byte_range=part) for name, part in wanted]
        found = []
        for (name, _), answer in zip(wanted, pending, strict=True):
            try:
                with answering(self.folder, name):
                    result = answer.result(timeout=TIMEOUT)
                found.append(bytes(result.value) if result.state == "value" else None)
            except ValueError as error:
                if not str(error).startswith("OUT_OF_RANGE"):
                    raise
                found.append(b"")
        return found


@contextmanager
def answering(folder: Location, name: str) -> Iterator[None]:
    """Raise Unreachable for what TensorStore reports of a server; other errors, of damaged data, pass."""
    try:
        yield
    except TimeoutError as error:
        raise Unreachable(f"{folder / name}: no answer within {TIMEOUT:.0f} s") from error
    except ValueError as error:
        if "ignored by server" in str(error):
            raise Unreachable(
                f"{folder / name}: the server does not send parts of files (HTTP Range); serve the store with one that "
                "does, or download it"
            ) from error
        if str(error).startswith(NO_ANSWER):
            reason = str(error).split(" [http_response", 1)[0].split(": ", 1)[1]
            raise Unreachable(f"{folder / name}: no answer ({reason})") from error
        raise
