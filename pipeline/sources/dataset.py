"""A store beside the dataset it was made of: comparing the two, and giving masks their images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from samdeblur.pipeline.sources.base import BadImage, ImagePair, Source
from samdeblur.storage import MaskStore, StoreError
from samdeblur.storage.format.layout import DONE, QUARANTINED
from samdeblur.storage.names import Names
from samdeblur.storage.writing.bulk import Row, fill_store
from samdeblur.storage.writing.commits import ImageContent, ImageOutcome

Progress = Callable[[int], None]
OTHER_IMAGE = "its masks are of another image than the one in the dataset"


def source_problems(store: MaskStore, source: Source, progress: Progress = lambda images: None) -> Iterator[str]:
    """One line for each image of a store that is not, or no longer, the image of that name in a dataset.

    Raises:
        StoreError: the store knows no digests, or digests of another kind than the dataset's.
    """
    _require_same_kind(store, source)
    names = Names(source.keys)
    for position, key in enumerate(store.keys):
        there = names.find(key)
        if there is None:
            yield f"{store.path}: {key}: not in the dataset"
        elif store.states[position] == DONE:
            try:
                if source.read(there).digest != store.digest(key):
                    yield f"{store.path}: {key}: {OTHER_IMAGE}"
            except BadImage as error:
                yield f"{store.path}: {key}: {error}"
        progress(1)
    for key in (key for key in source.keys if key not in store):
        yield f"{store.path}: {key}: in the dataset, not in the store"


def add_images(store: MaskStore, source: Source, target: Path, progress: Progress = lambda images: None) -> MaskStore:
    """A store with the masks of one and the images of the dataset they were made of, ready to train on.

    An image whose file is missing, damaged or another one is quarantined.

    Raises:
        StoreError: digests of another kind than the dataset's, no image of the store in it, or another store is there.
    """
    there = keys_in_both(store, source, store.keys)

    def row(position: int) -> Row:
        key = store.keys[position]
        if store.states[position] != DONE:
            return Row(ImageOutcome(int(store.states[position]), store.digest(key), error=store.error(key)))
        try:
            if key not in there:
                raise BadImage("not in the dataset")
            pair = read_own(store, source, key, there[key])
        except BadImage as error:
            return Row(ImageOutcome(QUARANTINED, store.digest(key), error=str(error)))
        content = ImageContent(store.atoms(key), store.records(key), pair.blurred, pair.sharp)
        return Row.done(content, pair.digest)

    header = replace(store.header, images=True, digest=source.digest, seal="", embeddings=())
    return fill_store(target, header, store.keys, store.shapes, row, progress)


def keys_in_both(store: MaskStore, source: Source, keys: Sequence[str]) -> dict[str, str]:
    """Those of some keys of a store that a dataset has, with what they are called there.

    Raises:
        StoreError: none of them, or digests of another kind than the dataset's.
    """
    if store.header.digest != "none":
        _require_same_kind(store, source)
    names = Names(source.keys)
    found = {key: name for key in keys if (name := names.find(key)) is not None}
    if not found:
        there = f"; the folder's are such as {source.keys[0]}" if source.keys else ""
        raise StoreError(
            f"{source.dataset} has no image of {store.path}, such as {keys[0]}{there}: name the folder, and list it "
            "with the layout, that the masks were made with"
        )
    return found


def read_own(store: MaskStore, source: Source, key: str, name: str) -> ImagePair:
    """The pair that the masks of an image were made of, called `name` in its dataset.

    A store that knows no digests compares sizes alone. Raises BadImage for another one, or as `Source.read`.
    """
    pair = source.read(name)
    (height, width), (rows, columns) = pair.blurred.shape[:2], store.shape(key)
    if (height, width) != (rows, columns):
        raise BadImage(f"its masks are {columns}x{rows}, the image in the dataset is {width}x{height}")
    if store.header.digest != "none" and pair.digest != store.digest(key):
        raise BadImage(OTHER_IMAGE)
    return pair


def _require_same_kind(store: MaskStore, source: Source) -> None:
    if store.header.digest != source.digest:
        raise StoreError(
            f"{store.path}: its digests are of {store.header.digest}, those of {source.dataset} of {source.digest}; "
            "they cannot be compared"
        )
