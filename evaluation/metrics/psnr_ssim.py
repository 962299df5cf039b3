"""PSNR, and SSIM in the two conventions in use."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samdeblur.evaluation.metrics.structural_similarity import BORDERS, OnCPU, OnGPU, similarities

ImageArray: TypeAlias = NDArray[np.uint8]
Convention: TypeAlias = Literal["wang", "nafnet"]

FIDELITY = ("psnr", "ssim_wang", "ssim_nafnet")
SMALLEST = 2 * max(BORDERS.values()) + 1  # pixels: the window of SSIM, which a smaller image has no place for


def psnr(image: ImageArray, reference: ImageArray) -> float:
    """Peak signal-to-noise ratio, dB, over all pixels and channels of two (H, W, 3) uint8 images; inf if equal.

    It is the same in both conventions of SSIM.

    Raises:
        ValueError: the images differ in shape, or are not (H, W, 3) uint8.
    """
    check_images(image, reference)
    return _decibel(round(cv2.norm(image, reference, cv2.NORM_L2SQR)), image.size)


def ssim(image: ImageArray, reference: ImageArray, convention: Convention = "wang") -> float:
    """Structural similarity of two (H, W, 3) uint8 images, K1 = 0.01, K2 = 0.03, Gaussian of sigma 1.5 over 11 pixels.

    Args:
        convention: "wang" is the usual one (Wang et al. 2004): per channel, only windows inside the image, averaged.
            "nafnet" is what NAFNet's evaluation computes and papers of its line report: the image as a volume
            H x W x C, an 11x11x11 Gaussian, borders replicated on every axis. It reads about 0.08 higher.

    Raises:
        ValueError: the images differ in shape, or are smaller than a window of "wang".
    """
    check_images(image, reference)
    _check_convention(convention, *image.shape[:2])
    return float(similarities(reference, [image], [convention], OnCPU())[0][convention])


def compare(
    sharp: Tensor | ImageArray, *images: Tensor | ImageArray, names: Sequence[str] = FIDELITY
) -> list[dict[str, Tensor]]:
    """PSNR and SSIM of batches of images against the same sharp ones.

    `before, after = compare(sharp, blurred, result)` takes less time than six calls of `psnr` and `ssim`: what the
    conventions and the images share is done once. The values are the same on a CPU, and to 1e-12 on a GPU.

    Args:
        sharp, images: (B, 3, H, W) uint8 tensors of one device, or (B, H, W, 3) uint8 arrays.
        names: which of "psnr" (dB; inf for equal images), "ssim_wang" and "ssim_nafnet" (see `ssim`).

    Returns:
        For each of `images`, a (B,) float64 tensor by name. Images on a CUDA device are compared there, and nothing
        waits for it; all others on the CPU.

    Raises:
        ValueError: other shapes or types, an unknown name, images smaller than the window of "ssim_wang".
    """
    for name in names:
        if name not in FIDELITY:
            near = difflib.get_close_matches(name, FIDELITY, n=1, cutoff=0)[0]
            raise ValueError(f"unknown metric {name!r}, did you mean {near}? There are {', '.join(FIDELITY)}")
    batches = [_channels_last(batch) for batch in (sharp, *images)]
    for batch in batches[1:]:
        if batch.shape != batches[0].shape or batch.device != batches[0].device:
            both = " and ".join(f"{tuple(one.shape)} on {one.device}" for one in (batch, batches[0]))
            raise ValueError(f"images must be of one shape and on one device, got (B, H, W, C) {both}")
    for convention in _conventions(names):
        _check_convention(convention, *batches[0].shape[1:3])
    return (_on_gpu if batches[0].is_cuda else _on_cpu)(batches[0], batches[1:], names)


def masked_psnr(image: NDArray[Any], reference: NDArray[Any], valid: NDArray[np.bool_]) -> float:
    """PSNR, dB, over the pixels of two (H, W, 3) images in 0..255, whole numbers or not, where (H, W) `valid` is true.

    Raises:
        ValueError: the shapes do not fit, no pixel is valid, or values are not finite.
    """
    _check_mask(image, reference, valid, 0)
    error = np.subtract(image, reference, dtype=np.float64)[valid]
    return _decibel(float(np.sum(error * error)), error.size)


def masked_ssim(
    image: NDArray[Any], reference: NDArray[Any], valid: NDArray[np.bool_], convention: Convention = "wang"
) -> float:
    """SSIM of two (H, W, 3) images in 0..255, whole numbers or not, averaged over the pixels where `valid` is true.

    Both images are made black elsewhere, so that a window that reaches there sees the same in both. "wang" leaves out
    the 5 pixels at the border of the image as well. With all pixels valid this is `ssim`.

    Raises:
        ValueError: the shapes do not fit, no pixel that counts is valid, values are not finite, or the images are
            smaller than a window of "wang".
    """
    _check_convention(convention, *image.shape[:2])
    _check_mask(image, reference, valid, BORDERS[convention])
    x, y = (np.where(valid[..., None], pixels, 0).astype(np.float64) for pixels in (image, reference))
    return float(similarities(y, [x], [convention], OnCPU(), valid)[0][convention])


def _decibel(squared_error: float, count: int) -> float:
    return float(10 * np.log10(255**2 * count / squared_error)) if squared_error else float("inf")


def _on_cpu(sharp: Tensor, images: Sequence[Tensor], names: Sequence[str]) -> list[dict[str, Tensor]]:
    """(B,) values by name for each batch of (B, H, W, 3)."""
    conventions = _conventions(names)
    values: list[dict[str, list[float]]] = [{name: [] for name in names} for _ in images]
    for y, *xs in zip(*(batch.cpu().contiguous().numpy() for batch in (sharp, *images)), strict=True):
        found = similarities(y, xs, conventions, OnCPU()) if conventions else [{} for _ in xs]
        for x, similarity, of_batch in zip(xs, found, values, strict=True):
            for name in names:
                of_batch[name].append(psnr(x, y) if name == "psnr" else similarity[name.removeprefix("ssim_")])
    return [{name: torch.tensor(row[name], dtype=torch.float64) for name in names} for row in values]


def _on_gpu(sharp: Tensor, images: Sequence[Tensor], names: Sequence[str]) -> list[dict[str, Tensor]]:
    """The same with torch alone."""
    conventions = _conventions(names)
    found = similarities(sharp, images, conventions, OnGPU()) if conventions else [{} for _ in images]
    rows = []
    for x, similarity in zip(images, found, strict=True):
        row = {f"ssim_{convention}": value for convention, value in similarity.items()}
        if "psnr" in names:
            error = (x.int() - sharp.int()).square_().sum((1, 2, 3), dtype=torch.float64)
            row["psnr"] = 10 * torch.log10(255**2 * x[0].numel() / error)
        rows.append({name: row[name] for name in names})
    return rows


def _conventions(names: Sequence[str]) -> list[str]:
    return [name.removeprefix("ssim_") for name in names if name != "psnr"]


def _channels_last(batch: Tensor | ImageArray) -> Tensor:
    """(B, H, W, 3) uint8 of either layout."""
    one = batch if isinstance(batch, Tensor) else torch.from_numpy(batch)
    if one.dtype != torch.uint8:
        raise ValueError(f"images must be uint8, got {batch.dtype}: clamp to [0, 1], times 255, round")
    one = one.permute(0, 2, 3, 1) if isinstance(batch, Tensor) and one.ndim == 4 else one
    if one.ndim != 4 or one.shape[3] != 3 or 0 in one.shape:
        shape = tuple(batch.shape)
        raise ValueError(f"images must be (B, 3, H, W) tensors or (B, H, W, 3) arrays, got {shape}")
    return one


def check_images(image: ImageArray, reference: ImageArray) -> None:
    if image.shape != reference.shape or image.shape[2:] != (3,) or image.size == 0:
        raise ValueError(f"images must be (H, W, 3) of one shape, got {image.shape} and {reference.shape}")
    if image.dtype != np.uint8 or reference.dtype != np.uint8:
        raise ValueError(f"images must be uint8, got {image.dtype} and {reference.dtype}")


def _check_mask(image: NDArray[Any], reference: NDArray[Any], valid: NDArray[np.bool_], border: int) -> None:
    if image.shape != reference.shape or image.shape != (*valid.shape, 3) or valid.dtype != bool:
        shapes = f"{image.shape}, {reference.shape} and {valid.dtype} {valid.shape}"
        raise ValueError(f"images must be (H, W, 3) of one shape with a bool mask (H, W), got {shapes}")
    if not valid[border : valid.shape[0] - border, border : valid.shape[1] - border].any():
        raise ValueError("no pixel that counts is valid")
    if not (np.isfinite(image).all() and np.isfinite(reference).all()):
        raise ValueError("images hold values that are not finite")


def _check_convention(convention: str, height: int, width: int) -> None:
    if convention not in BORDERS:
        raise ValueError(f"unknown SSIM convention {convention!r}, choose wang or nafnet")
    if min(height, width) <= 2 * BORDERS[convention]:
        raise ValueError(f"images of {width}x{height} are smaller than the SSIM window of {SMALLEST} pixels")
