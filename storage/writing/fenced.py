"""Zarr arrays that only the owner of a fence changes."""

from __future__ import annotations

import asyncio
from pathlib import Path

from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from samdeblur.storage.writing.fence import Fence


class FencedStore(LocalStore):
    """zarr-python's local store; what is written goes through a fence, durably."""

    def __init__(self, root: Path, fence: Fence) -> None:
        super().__init__(root)
        self._fence = fence

    async def set(self, key: str, value: Buffer) -> None:
        if not self._is_open:
            await self._open()
        self._check_writable()
        await asyncio.to_thread(self._fence.write, self.root / key, value.as_buffer_like())

    def set_sync(self, key: str, value: Buffer) -> None:
        self._ensure_open_sync()
        self._check_writable()
        self._fence.write(self.root / key, value.as_buffer_like())
