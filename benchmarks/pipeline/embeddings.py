"""What keeping embeddings takes, and what masks from them cost and differ in.

python -m benchmarks.pipeline.embeddings

The bundled model, and a ViT of the real classes with random weights (512 pixels, 12 layers of 384 channels: a quarter
of the tokens of public models) whose masks say nothing and are not compared. One thread of a CPU, whose time is taken,
both ways in turn: masks exactly, and from embeddings that went through float16. Prints a table, writes
benchmarks/results/embeddings.json.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from functools import partial
from typing import Any

import cv2
import numpy as np
import skimage.data
import torch
from numcodecs import Zstd
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from benchmarks.common.figures import RESULTS
from samdeblur.models import load_sam
from samdeblur.pipeline import BUNDLED_SETTINGS, SamSegmenter
from samdeblur.pipeline.segmenters.kept import pack
from samdeblur.pipeline.sources.worlds import WorldSource
from samdeblur.storage.format.layout import IMAGE_LEVEL
from samdeblur.storage.writing.compare import best_iou, same_masks

PHOTOGRAPHS = ("chelsea",)
POINTS = 12
ROUNDS = 3  # of each image: both ways in turn, medians


def random_vit() -> Sam:
    torch.manual_seed(0)
    encoder = ImageEncoderViT(
        img_size=512, embed_dim=384, depth=12, num_heads=6, out_chans=256, use_rel_pos=True, window_size=14,
        global_attn_indexes=(2, 5, 8, 11), norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    decoder = MaskDecoder(
        transformer_dim=256, transformer=TwoWayTransformer(2, 256, 8, 2048), iou_head_depth=3, iou_head_hidden_dim=256
    )
    sam = Sam(encoder, PromptEncoder(256, (32, 32), (512, 512), 16), decoder)
    return sam.eval()


def images() -> list[np.ndarray]:
    photographs = (getattr(skimage.data, name)()[..., :3] for name in PHOTOGRAPHS)
    source = WorldSource.of("worlds:1:256", "val")
    found = [cv2.resize(each, (320, 240), interpolation=cv2.INTER_AREA) for each in photographs]
    return [*found, *(source.read(key).blurred for key in source.keys)]


def measure(segmenter: SamSegmenter, compared: bool) -> dict[str, Any]:
    exact, encoder, kept, raw, stored, pairs = [], [], [], [], [], []
    for image in images():
        times = []
        for _ in range(ROUNDS):
            start = time.process_time()
            (crop,) = segmenter.embed_crops(image)
            encoded = time.process_time()
            first, _ = segmenter.segment(image, [crop])
            segmented = time.process_time()
            maps = pack([crop])
            packed = time.process_time()
            second, _ = segmenter.segment(image, segmenter.kept_crops(image.shape[:2], maps))
            times.append((segmented - start, encoded - start, time.process_time() - packed))
        for all_images, of_image in zip((exact, encoder, kept), zip(*times, strict=True), strict=True):
            all_images.append(statistics.median(of_image))
        raw.append(sum(each.nbytes for each in maps))
        stored.append(sum(len(Zstd(IMAGE_LEVEL).encode(each.tobytes())) for each in maps))
        pairs.append((first, second))
    seconds = statistics.mean(exact)
    found = {
        "seconds_per_image": round(seconds, 3),
        "of_the_encoder": round(statistics.mean(encoder), 3),
        "seconds_from_embeddings": round(statistics.mean(kept), 3),
        "ratio": round(seconds / statistics.mean(kept), 2),
        "kb_float16": round(statistics.mean(raw) / 1e3, 1),
        "kb_stored": round(statistics.mean(stored) / 1e3, 1),
    }
    if not compared:
        return found
    best = np.concatenate([best_iou(*pair) for pair in pairs])
    return found | {
        "masks": sum(first.n_masks for first, _ in pairs),
        "masks_from_embeddings": sum(second.n_masks for _, second in pairs),
        "equal": sum(len(same_masks(*pair)) for pair in pairs),
        "matched_at_0.9": round(float((best >= 0.9).mean()), 4),
        "mean_best_iou": round(float(best.mean()), 5),
    }


def main() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    bundled = {**BUNDLED_SETTINGS, "points_per_side": POINTS}
    rows = {
        "bundled, 12x12 points": measure(SamSegmenter(load_sam("bundled"), "", **bundled), True),
        "random ViT, 4x4 points": measure(SamSegmenter(random_vit(), "", points_per_side=4), False),
        "random ViT, 8x8 points": measure(SamSegmenter(random_vit(), "", points_per_side=8), False),
    }
    for name, row in rows.items():
        print(name, ", ".join(f"{what} {value}" for what, value in row.items()))
    told = {"machine": platform.machine(), "torch": torch.__version__, "load": os.getloadavg()[0], "rows": rows}
    (RESULTS / "embeddings.json").write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
