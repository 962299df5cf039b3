"""Parts of files by the client of obstore, which costs a fraction of a careful request and knows no exceptions.

It is asked only where a server was seen to answer as the standard says, and only a full answer of it counts: for
anything else the careful way, `web`, asks again and finds out what there is to say.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import cache
from typing import Any

import obstore
from obstore.exceptions import BaseError
from obstore.store import HTTPStore

from samdeblur.storage.access import files

AT_ONCE = 16
FAILURES = 3  # after which a server is asked the careful way alone


class Direct:
    """Files under an address without query or redirects, at a server that sends the parts it is asked for.

    Args:
        folder: its address; files are named by paths under it of letters, digits and -._/ alone.
        headers: for every request.
    """

    def __init__(self, folder: str, headers: Mapping[str, str]) -> None:
        self._failures = 0
        self._process = os.getpid()
        patience = timedelta(seconds=files.TIMEOUT / 12)
        self._store: Any = HTTPStore.from_url(
            folder,
            client_options={
                "allow_http": True,
                "timeout": patience,
                "connect_timeout": patience,
                "default_headers": {"accept-encoding": "identity", **headers},
            },
            retry_config={"max_retries": 0, "retry_timeout": patience},
        )

    def get_all(self, parts: Sequence[tuple[str, int, int]]) -> list[bytes | None]:
        """Parts of files, (path, first byte, last byte exclusive); None for what the careful way has to ask for."""
        if self._failures >= FAILURES or self._process != os.getpid():  # its threads do not survive a fork
            return [None] * len(parts)
        others = [_workers().submit(self._get, part) for part in parts[1:]]
        return [self._get(parts[0]), *(other.result() for other in others)]

    def _get(self, part: tuple[str, int, int]) -> bytes | None:
        name, first, last = part
        try:
            content = bytes(obstore.get_range(self._store, name, start=first, end=last))
        except (BaseError, OSError):
            content = b""
        if len(content) == last - first:
            return content
        self._failures += 1
        return None


@cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(AT_ONCE, "samdeblur-direct")
