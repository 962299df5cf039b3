"""OME-Zarr 0.5: each image with its plane of atoms as a label image, for napari and other OME viewers.

A plane of atoms is a legal label image although the masks overlap: the properties of a label name the masks on it.
"""

from __future__ import annotations

import colorsys
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from samdeblur.storage.atoms import AtomMap
from samdeblur.storage.exchange.coco import Progress
from samdeblur.storage.exchange.sa1b import SUFFIX, relative_paths, unfinished
from samdeblur.storage.files import fsync_path
from samdeblur.storage.store import MaskStore

VERSION = "0.5"
LABEL = "atoms"


def export_ome(store: MaskStore, target: Path, progress: Progress) -> list[str]:
    """Write a group KEY with `labels/atoms` for each image that is done. The folder appears whole or not at all.

    The image is the blurred one where the store holds it, else the plane of atoms.

    Returns:
        What is lost, one line each.

    Raises:
        ExchangeError: something lies at the target, or a key is no relative path.
    """
    groups = relative_paths(store.ready_keys)
    partial = unfinished(target)
    try:
        header = store.header
        about = {"dataset": header.dataset, "split": header.split, "recipe": dict(header.recipe)}
        about["images"] = list(groups)
        root = zarr.create_group(partial, zarr_format=3, attributes={"samdeblur": about})
        for key, path in groups.items():
            _write(root.create_group(str(path).removesuffix(SUFFIX)), store, key)
            progress(1)
        if target.exists():
            target.rmdir()
        partial.rename(target)
        fsync_path(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return ["ome-zarr holds the masks as the properties of atoms, and no digests"]


def _write(group: zarr.Group, store: MaskStore, key: str) -> None:
    atoms, records = store.atoms(key), store.records(key)
    image: NDArray[Any]
    if store.header.images:
        image, axes = np.moveaxis(store.image("blurred", key), 2, 0), "cyx"
    else:
        image, axes = atoms.atoms, "yx"
    group.update_attributes({"ome": {"version": VERSION, "multiscales": [_multiscale(key, axes)]}})
    _array(group, image)
    labels = group.create_group("labels", attributes={"ome": {"version": VERSION, "labels": [LABEL]}})
    image_label: dict[str, Any] = {"source": {"image": "../../"}}
    if properties := _properties(atoms, records):
        colors = [{"label-value": item["label-value"], "rgba": _colour(item["masks"])} for item in properties]
        image_label |= {"colors": colors, "properties": properties}
    about = {"version": VERSION, "multiscales": [_multiscale(LABEL, "yx")], "image-label": image_label}
    _array(labels.create_group(LABEL, attributes={"ome": about}), atoms.atoms)


def _array(group: zarr.Group, values: NDArray[Any]) -> None:
    chunks = tuple(min(size, 256) for size in values.shape[-2:])
    names = ("c", "y", "x")[-values.ndim :]
    array = group.create_array(
        "0", shape=values.shape, dtype=values.dtype, chunks=(*values.shape[:-2], *chunks), dimension_names=names
    )
    array[...] = values


def _multiscale(name: str, axes: str) -> dict[str, Any]:
    scale = {"type": "scale", "scale": [1.0] * len(axes)}
    return {
        "name": name,
        "axes": [{"name": axis, "type": "channel" if axis == "c" else "space"} for axis in axes],
        "datasets": [{"path": "0", "coordinateTransformations": [scale]}],
    }


def _properties(atoms: AtomMap, records: dict[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
    """One for each atom: the masks on it, and the record of each."""
    found = []
    for atom in range(1, atoms.n_atoms + 1):
        masks = atoms.pairs[atoms.pairs[:, 0] == atom, 1].tolist()
        rows = [_record(records, mask) for mask in masks]
        found.append({"label-value": atom, "masks": masks, "records": rows})
    return found


def _colour(masks: list[int]) -> list[int]:
    """Of the last mask on an atom; the golden ratio keeps neighbours apart."""
    return [*(round(255 * part) for part in colorsys.hsv_to_rgb(masks[-1] * 0.618034 % 1, 0.7, 1.0)), 255]


def _record(records: dict[str, NDArray[np.float64]], mask: int) -> dict[str, float]:
    return {name: float(column[mask]) for name, column in records.items() if np.isfinite(column[mask])}
