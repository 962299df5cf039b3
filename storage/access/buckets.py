"""Files in buckets of S3, Google Cloud and Azure, by way of obstore. Credentials come from the environment."""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import BaseError, NotSupportedError, PermissionDeniedError, UnauthenticatedError
from obstore.store import AzureStore, GCSStore, S3Store

from samdeblur.storage.access import files
from samdeblur.storage.access.files import Part, Refused, Unreachable
from samdeblur.storage.access.location import Location, without_secrets

AT_ONCE = 16
S3_SERVICES = (  # where temporary credentials of AWS come from; any of these set, they are asked for
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_EC2_METADATA_DISABLED",
)
GOOGLE = ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_KEY")
AZURE_ADDRESS = ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ENDPOINT")  # which say where, and not who asks


class Bucket:
    """A folder of a bucket."""

    gap = 32768

    def __init__(self, folder: Location) -> None:
        self._folder = folder
        try:
            self._store = {"s3": _s3, "gs": _gs, "az": _az}[folder.scheme](folder.bucket)
        except BaseError as error:
            raise Refused(f"{folder}: {_brief(error)}") from error

    def get_all(self, wanted: Sequence[tuple[str, Part]]) -> list[bytes | None]:
        if len(wanted) == 1:
            return [self._get(*wanted[0])]
        return list(_workers(os.getpid()).map(lambda item: self._get(*item), wanted))

    def _get(self, name: str, part: Part) -> bytes | None:
        key = "/".join(word for word in (self._folder.key, name) if word)
        try:
            return self._read(key, part)
        except FileNotFoundError:
            return None
        except (BaseError, OSError) as error:
            if part is not None and "status code: 416" in str(error):
                return b""
            where = self._folder / name if name else self._folder
            if isinstance(error, PermissionError | PermissionDeniedError | UnauthenticatedError):
                raise Refused(
                    f"{where}: the server refuses it ({_brief(error)}); it is not public, or the credentials in the "
                    "environment are not its own"
                ) from error
            raise Unreachable(f"{where}: {_brief(error)}") from error

    def _read(self, key: str, part: Part) -> bytes:
        if part is None:
            return bytes(obstore.get(self._store, key).bytes())
        if part.start is not None and part.start < 0:
            try:
                return bytes(obstore.get(self._store, key, options={"range": {"suffix": -part.start}}).bytes())
            except NotSupportedError:  # Azure knows no such part
                size = obstore.head(self._store, key)["size"]
                part = slice(max(0, size + part.start), size)
        first = part.start or 0
        return bytes(obstore.get_range(self._store, key, start=first, end=part.stop)) if first < part.stop else b""


def _options(endpoint: str = "") -> dict[str, Any]:
    """How long to wait and try again; also for servers without TLS."""
    return {
        "client_options": {
            "timeout": timedelta(seconds=files.TIMEOUT / 4),
            "connect_timeout": timedelta(seconds=files.TIMEOUT / 6),
            "allow_http": endpoint.startswith("http://"),
        },
        "retry_config": {"max_retries": 6, "retry_timeout": timedelta(seconds=files.TIMEOUT)},
    }


def _s3(bucket: str) -> Any:
    endpoint = (os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "").rstrip("/")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    about: dict[str, Any] = {"region": region} | ({"endpoint": endpoint} if endpoint else {})
    if "AWS_ACCESS_KEY_ID" not in os.environ:
        keys: dict[str, Any] = dict(_aws_profile())
        services = any(name in os.environ for name in S3_SERVICES)
        about |= keys or ({} if services else {"skip_signature": True})
    return S3Store(bucket, **about, **_options(endpoint))


def _aws_profile() -> dict[str, str]:
    """The keys of a profile in AWS's own files; nothing where there are none."""
    file = os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or Path.home() / ".aws/credentials"
    parser = configparser.RawConfigParser()
    try:
        parser.read(file)
        profile = parser[os.environ.get("AWS_PROFILE", "default")]
    except (configparser.Error, UnicodeDecodeError, KeyError):
        return {}
    names = {
        "access_key_id": "aws_access_key_id",
        "secret_access_key": "aws_secret_access_key",
        "session_token": "aws_session_token",
    }
    return {ours: profile[theirs] for ours, theirs in names.items() if theirs in profile}


def _gs(bucket: str) -> Any:
    known = (
        any(name in os.environ for name in GOOGLE)
        or (Path.home() / ".config/gcloud/application_default_credentials.json").exists()
    )
    endpoint = os.environ.get("STORAGE_EMULATOR_HOST", "").rstrip("/")
    about: dict[str, Any] = ({} if known else {"skip_signature": True}) | ({"base_url": endpoint} if endpoint else {})
    return GCSStore(bucket, **about, **_options(endpoint))


def _az(container: str) -> Any:
    if not any(name in os.environ for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_CONNECTION_STRING")):
        raise Refused(f"az://{container}: set AZURE_STORAGE_ACCOUNT_NAME to the account that the container belongs to")
    known = any(name.startswith("AZURE_") and name not in AZURE_ADDRESS for name in os.environ)
    endpoint = os.environ.get("AZURE_STORAGE_ENDPOINT", "")
    about: dict[str, Any] = {} if known else {"skip_signature": True}
    return AzureStore(container, **about, **_options(endpoint))


def _brief(error: Exception) -> str:
    """What is said of a server, in a line: the words before the details of the request."""
    text = " ".join(str(error).split("\n\nDebug source")[0].split())
    if status := re.search(r"status code: (\d{3} [A-Za-z -]+)", text):
        return f"HTTP {status[1].strip()}"
    text = re.sub(r"^.*Error performing \w+ \S+ in .*? - ", "no answer: ", text)
    return without_secrets(text)[:300]


@cache
def _workers(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(AT_ONCE, "samdeblur-bucket")
