"""Masks from the embeddings that another store keeps, instead of from the encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samdeblur.pipeline.job.recipe import PrepSettings
from samdeblur.pipeline.segmenters.bounds import number_of_crops
from samdeblur.pipeline.sources.base import BadImage, Source
from samdeblur.pipeline.sources.dataset import keys_in_both, read_own
from samdeblur.storage import MaskStore, StoreError, open_store
from samdeblur.storage.format.layout import PENDING
from samdeblur.storage.plurals import counted
from samdeblur.storage.writing.compare import SINCE, recipe_differences


def require_embeddings(source: Source, settings: PrepSettings) -> None:
    """Raise StoreError unless a store keeps the embeddings that these settings want of every image of a source.

    One image is read and compared, so that another dataset with the same names is seen; workers compare all.
    """
    assert settings.embeddings is not None
    store = open_store(settings.embeddings)
    place = f"--from-embeddings {store.path}"
    if not store.header.embeddings:
        raise StoreError(f"{place}: keeps no embeddings; prepare it anew with --keep-embeddings")
    stored, asked = store.header.recipe, replace(settings, embeddings=None).recipe()
    if differences := recipe_differences(_of_encoder(stored), _of_encoder(asked), SINCE):
        raise StoreError(f"{place}: its embeddings were made with other settings ({'; '.join(differences)})")
    there, here = stored["segmenter"], asked["segmenter"]
    if there["crop_n_layers"] < here["crop_n_layers"]:
        layers = counted(there["crop_n_layers"], "layer")
        raise StoreError(f"{place}: has {layers} of crops, --crop-n-layers {here['crop_n_layers']} was asked for")
    if here["crop_n_layers"] and there["crop_overlap_ratio"] != here["crop_overlap_ratio"]:
        raise StoreError(
            f"{place}: its crops overlap by {there['crop_overlap_ratio']}, --crop-overlap-ratio "
            f"{here['crop_overlap_ratio']} was asked for"
        )
    if missing := [key for key in source.keys if store.find(key) is None]:
        raise StoreError(f"{place}: has no embedding of {counted(len(missing), 'image')}, such as {missing[0]}")
    if pending := int((store.states == PENDING).sum()):
        raise StoreError(f"{place}: {counted(pending, 'image')} of it pending; finish it first")
    names = keys_in_both(store, source, store.ready_keys)
    if first := next(iter(names), None):
        try:
            read_own(store, source, first, names[first])
        except BadImage as error:
            raise StoreError(f"{place}: {first}: {error}") from error


def kept_features(store: MaskStore, key: str, digest: bytes, settings: Mapping[str, Any]) -> list[NDArray[np.float16]]:
    """What a store keeps of an image with this digest, for these settings of mask generation.

    Raises BadImage for another image, or as `MaskStore.embeddings`.
    """
    if store.digest(key) != digest:
        raise BadImage(f"{key}: its embedding in {store.path} is of another image")
    return store.embeddings(key, number_of_crops(settings["crop_n_layers"]))


def _of_encoder(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What an embedding depends on."""
    segmenter = recipe.get("segmenter", {})
    names = ("name", "checkpoint", "channel_order")
    return {
        "mode": recipe.get("mode"),
        "predeblur": recipe.get("predeblur"),
        "segmenter": {name: segmenter.get(name) for name in names},
    }
