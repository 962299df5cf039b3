"""What the measurements are made on: images, masks, networks and Segment Anything models of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything import build_sam_vit_b, build_sam_vit_h
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

from samdeblur.models import MAPUnit, NAFNet, with_prior
from samdeblur.storage import AtomMap, MaskStore, open_store
from samdeblur.storage.format.layout import DONE, Header, pixel_digest, round_up
from samdeblur.storage.writing.commits import Committer, ImageContent, ImageOutcome, StagedBlock, stage_block
from samdeblur.storage.writing.creation import create_store


@dataclass(frozen=True)
class Size:
    """How large everything is; `small` is for trying every line without an accelerator."""

    name: str
    height: int
    width: int
    masks: int
    network: int  # width of NAFNet
    blocks: tuple[int, ...]  # of its encoder
    batch: int
    crop: int
    steps: int
    points: int  # per side
    models: tuple[str, ...]
    images: int


FULL = Size("full", 720, 1280, 150, 32, (1, 1, 1, 28), 32, 256, 20, 32, ("vit_b", "vit_h"), 6)
SMALL = Size("small", 96, 128, 12, 4, (1,), 2, 32, 2, 4, ("tiny",), 3)


def noisy_patches(size: Size, seed: int = 0) -> NDArray[np.uint8]:
    """(H, W, 3) uint8: patches of colour under noise."""
    rng = np.random.default_rng(seed)
    patches = cv2.resize(
        rng.integers(0, 256, (9, 16, 3), np.uint8), (size.width, size.height), interpolation=cv2.INTER_NEAREST
    )
    return np.clip(patches + rng.normal(0, 8, patches.shape), 0, 255).astype(np.uint8)


def masks(size: Size, seed: int = 0) -> NDArray[np.bool_]:
    """(N, H, W) bool: overlapping ellipses of all sizes."""
    rng = np.random.default_rng(seed)
    ys, xs = np.ogrid[: size.height, : size.width]
    found = []
    for _ in range(size.masks):
        radius = min(size.height, size.width) * 0.5 * rng.power(0.6) + 3
        y, x = rng.uniform(0, (size.height, size.width))
        found.append(((ys - y) / rng.uniform(0.6, 1.4)) ** 2 + ((xs - x) / rng.uniform(0.6, 1.4)) ** 2 < radius**2)
    return np.stack(found)


def network(size: Size, method: str = "map-dropout") -> nn.Module:
    """NAFNet with the prior of the paper and weights of which none is zero."""
    torch.manual_seed(0)
    plain = NAFNet(size.network, size.blocks, 1, (1,) * len(size.blocks))
    found = with_prior(plain, None if method == "none" else MAPUnit(2, 0.5), init="default")
    for name, weight in found.named_parameters():
        if name.endswith(("beta", "gamma")):
            nn.init.normal_(weight, std=0.1)
    return found


def sam(name: str, device: torch.device) -> Sam:
    """A Segment Anything model with random weights: vit_b, vit_h, or a tiny one."""
    torch.manual_seed(0)
    with torch.device(device):
        built = _tiny_sam() if name == "tiny" else {"vit_b": build_sam_vit_b, "vit_h": build_sam_vit_h}[name]()
        for weight in built.parameters():
            if not weight.any():
                nn.init.normal_(weight, std=0.02)
    return built.to(device).eval()


def _tiny_sam() -> Sam:
    encoder = ImageEncoderViT(
        img_size=64, embed_dim=32, depth=2, num_heads=2, out_chans=32, use_rel_pos=True, window_size=2,
        global_attn_indexes=(1,), norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    decoder = MaskDecoder(
        transformer_dim=32, transformer=TwoWayTransformer(2, 32, 8, 64), iou_head_depth=3, iou_head_hidden_dim=32
    )
    return Sam(encoder, PromptEncoder(32, (4, 4), (64, 64), 16), decoder)


def store(size: Size, folder: Path) -> MaskStore:
    """A store of pairs with masks, made anew."""
    path = folder / "pairs.zarr"
    shapes = np.array([[size.height, size.width]] * size.images, np.int32)
    extent = (round_up(size.height), round_up(size.width))
    header = Header("bench", "train", {"segmenter": "ellipses"}, "pixels", size.images, extent, 64, 1, images=True)
    create_store(path, header, [f"{number:04d}" for number in range(size.images)], shapes)
    committer = Committer(path)
    staged = []
    for block in range(size.images):
        sharp = noisy_patches(size, block)
        atoms = AtomMap.from_masks(masks(size, block))
        content = ImageContent(atoms, {"area": atoms.mask_areas().astype(float)}, cv2.blur(sharp, (9, 3)), sharp)
        counts = (atoms.n_masks, atoms.n_atoms, len(atoms.pairs))
        digests = stage_block(path, header, committer.staging(block), block, [content])
        outcome = ImageOutcome(DONE, pixel_digest(content.blurred), counts)
        staged.append(StagedBlock(block, str(committer.staging(block)), (outcome,), digests))
    committer.commit(staged)
    committer.close()
    return open_store(path)


def settings_for(sam: Sam, image: NDArray[np.uint8], size: Size, wanted: int = 150) -> dict[str, Any]:
    """Thresholds at which a model with random weights does the work of a trained one: of three masks at each point
    about a third is brought to full size, and about `wanted` are kept. Their boxes are all alike, so NMS takes none.
    """
    from samdeblur.pipeline.segmenters.mask_generator import MaskGenerator

    base = {"points_per_side": size.points, "box_nms_thresh": 1.0, "pred_iou_thresh": -1.0}
    generator = MaskGenerator(sam, **base, stability_score_thresh=-1.0, stability_score_offset=0.1)
    with torch.inference_mode():
        crop = generator.embed([image])[0]
        points = generator._grids[0] * np.array(crop.size)[None, ::-1]
        batches = [points[i : i + 64] for i in range(0, len(points), 64)]
        iou = np.concatenate([generator._decode(crop, some)[1].cpu().numpy() for some in batches])
        threshold = float(np.quantile(iou, 2 / 3))
        generator.settings["pred_iou_thresh"] = threshold
        found = generator._candidates(image, crop)
    stability = found.stability.cpu().numpy()
    share = min(wanted, len(stability) // 2) / max(1, len(stability))
    return base | {
        "pred_iou_thresh": threshold,
        "stability_score_offset": 0.1,
        "stability_score_thresh": float(np.nanquantile(stability, 1 - share)),
    }


def dense(planes: Sequence[NDArray[np.bool_]], features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Algorithm 1 as written, in float64 on the host: (S, H, W)."""
    pooled = np.zeros_like(features)
    for mask in [*planes, ~np.any(planes, axis=0)]:
        if mask.any():
            pooled[:, mask] += features[:, mask].mean(axis=1, keepdims=True)
    return pooled
