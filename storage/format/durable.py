"""Zarr arrays whose files are on the disk before they count."""

from __future__ import annotations

import asyncio

from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from samdeblur.storage.files import write_durably


class DurableStore(LocalStore):
    """zarr-python's local store, with every write flushed to the disk before it counts."""

    async def set(self, key: str, value: Buffer) -> None:
        if not self._is_open:
            await self._open()
        self._check_writable()
        await asyncio.to_thread(write_durably, self.root / key, value.as_buffer_like())  # type: ignore[arg-type]

    def set_sync(self, key: str, value: Buffer) -> None:
        self._ensure_open_sync()
        self._check_writable()
        write_durably(self.root / key, value.as_buffer_like())  # type: ignore[arg-type]
