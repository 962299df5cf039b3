"""Every mask a Segment Anything model answers to a grid of points, before any filter, beside the true masks.

What calibration, the choice of thresholds and the table of reliability look at.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from segment_anything.utils.amg import batched_mask_to_box, build_point_grid
from torchvision.ops.boxes import batched_nms

from samdeblur.evaluation.masks.matching import Match, match
from samdeblur.storage import AtomMap

AT_ONCE = 32  # points


@dataclass(frozen=True)
class Candidates:
    """The C candidates of an image with M true masks.

    Attributes:
        predicted: (C,) IoU. ious: (C, M) with the true masks. boxes: (C, 4) x0 y0 x1 y1.
        stability: (C, S) stability score at offset 1 if the logits were multiplied by each of S factors.
    """

    predicted: NDArray[np.float32]
    ious: NDArray[np.float32]
    boxes: NDArray[np.float32]
    stability: NDArray[np.float32]

    @property
    def best(self) -> NDArray[np.float32]:
        """(C,) IoU with the true mask that is met best."""
        return self.ious.max(axis=1)

    def generated(self, pred_iou: float, stability: float, factor: int = 0, nms: float = 0.7) -> Match:
        """What automatic generation with these thresholds would keep of them, matched with the true masks."""
        kept = np.flatnonzero((self.predicted > pred_iou) & (self.stability[:, factor] >= stability))
        boxes, scores = torch.from_numpy(self.boxes[kept]), torch.from_numpy(self.predicted[kept])
        kept = kept[batched_nms(boxes, scores, torch.zeros(len(kept)), nms).numpy()]
        return match(self.ious[kept].astype(np.float64))


@torch.inference_mode()
def candidates(
    sam: Sam, image: NDArray[np.uint8], truth: AtomMap, side: int, factors: tuple[float, ...] = (1.0,)
) -> Candidates:
    """Those of a grid of side x side points of an (H, W, 3) uint8 RGB image."""
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    points = build_point_grid(side) * np.array(image.shape[1::-1])
    points = torch.from_numpy(predictor.transform.apply_coords(points, image.shape[:2])).float()
    true = torch.from_numpy(truth.to_masks()).flatten(1).float()
    rows = []
    for some in points.split(AT_ONCE):
        logits, predicted, _ = predictor.predict_torch(
            some[:, None], torch.ones(len(some), 1, dtype=torch.int), return_logits=True
        )
        logits = logits.flatten(0, 1)
        masks = logits > 0
        flat = masks.flatten(1).float()
        shared = flat @ true.T
        ious = shared / (flat.sum(dim=1)[:, None] + true.sum(dim=1)[None] - shared).clamp(min=1)
        stable = [
            (logits > 1 / factor).sum(dim=(1, 2)) / (logits > -1 / factor).sum(dim=(1, 2)).clamp(min=1)
            for factor in factors
        ]
        rows.append((predicted.flatten(), ious, batched_mask_to_box(masks).float(), torch.stack(stable, dim=1)))
    return Candidates(*(torch.cat(part).numpy() for part in zip(*rows, strict=True)))
