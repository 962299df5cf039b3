"""Comparing a store with the dataset it was made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from samdeblur.pipeline.sources import BadImage, Source
from samdeblur.storage import MaskStore, StoreError
from samdeblur.storage.layout import DONE


def source_problems(
    store: MaskStore, source: Source, progress: Callable[[int], None] = lambda images: None
) -> Iterator[str]:
    """One line for each image of a store that is not, or no longer, the image of that name in a dataset.

    Raises:
        StoreError: the store knows no digests, or digests of another kind than the dataset's.
    """
    if store.header.digest != source.digest:
        raise StoreError(
            f"{store.path}: its digests are of {store.header.digest}, those of {source.dataset} of {source.digest}; "
            "they do not compare"
        )
    there = set(source.keys)
    for position, key in enumerate(store.keys):
        if key not in there:
            yield f"{store.path}: {key}: not in the dataset"
        elif store.states[position] == DONE:
            try:
                if source.read(key).digest != store.digest(key):
                    yield f"{store.path}: {key}: its masks are of another picture than the one in the dataset"
            except BadImage as error:
                yield f"{store.path}: {key}: {error}"
        progress(1)
    for key in sorted(there - set(store.keys)):
        yield f"{store.path}: {key}: in the dataset, not in the store"
