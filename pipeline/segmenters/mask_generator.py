"""Segment Anything's automatic mask generation: the masks of the reference, in its order, without its waste.

What `segment_anything.SamAutomaticMaskGenerator` spends its time on is not the network: it brings every candidate to
full size before most are dropped, and takes each through run lengths and back. Here candidates are filtered by their
predicted IoU first, brought to full size a few at a time, so that they stay in the cache, and kept as bits inside their
boxes. On a GPU they stay there, as bits too, until the last filter has spoken: only what is kept comes to the host, and
the next batch of points, or the next image, is computed meanwhile.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam
from segment_anything.utils import amg
from torch import Tensor
from torchvision.ops.boxes import batched_nms, box_area

from samdeblur.models import NotFinite
from samdeblur.pipeline.segmenters.base import Records
from samdeblur.pipeline.segmenters.bounds import check_settings
from samdeblur.pipeline.segmenters.families.base import Adapter, Embedding
from samdeblur.pipeline.segmenters.families.original import OriginalSam
from samdeblur.pipeline.segmenters.packed import (
    DeviceMask,
    PackedMask,
    Soon,
    boxes_there,
    count_above,
    pack_above,
    pack_there,
    to_host,
)
from samdeblur.pipeline.segmenters.speed import EXACT, Speed
from samdeblur.storage import AtomMap
from samdeblur.storage.format.layout import RECORD_COLUMNS

# Settings of SamAutomaticMaskGenerator and their defaults; its output format is not one.
SAM_SETTINGS: dict[str, Any] = {
    name: parameter.default
    for name, parameter in inspect.signature(SamAutomaticMaskGenerator).parameters.items()
    if name not in ("model", "output_mode")
}

MAX_SIDE = 32767  # pixels; the reference counts those of a row in 16 bits
LOGITS = 32.0  # of masks that are prompts in their turn, at most
PIXELS_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 26}  # of candidates brought to full size together


@dataclass(frozen=True)
class Candidates:
    """Masks that passed the filters so far; M each. Scores, boxes and masks are where the model is, else on the host.

    Attributes:
        iou: (M,) float32, predicted.
        stability: (M,) float32.
        points: (M, 2) float64 x, y.
        boxes: (M, 4) int64 x0, y0, x1, y1.
        crops: (M, 4) int64 x0, y0, x1, y1 of the crop of the image it was found in.
        masks: M of them.
    """

    iou: Tensor
    stability: Tensor
    points: Tensor
    boxes: Tensor
    crops: Tensor
    masks: list[PackedMask | DeviceMask]

    def __getitem__(self, kept: Tensor) -> Candidates:
        """Those at the positions `kept`, (K,) int64."""
        at = kept.cpu()
        masks = [self.masks[position] for position in at.tolist()]
        return Candidates(
            self.iou[kept], self.stability[kept], self.points[at], self.boxes[kept], self.crops[at], masks
        )

    def to_host(self) -> Callable[[], Candidates]:
        """What gives them on the host, masks packed; they are sent now."""
        sent = [Soon(column) for column in (self.iou, self.stability, self.boxes)]
        pack = to_host(self.masks)

        def get() -> Candidates:
            iou, stability, boxes = (column.get() for column in sent)
            return Candidates(iou, stability, self.points, boxes, self.crops, [*pack()])

        return get

    @classmethod
    def join(cls, parts: Sequence[Candidates]) -> Candidates:
        names = ("iou", "stability", "points", "boxes", "crops")
        columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return cls(**columns, masks=[mask for part in parts for mask in part.masks])


@dataclass(frozen=True)
class Crop:
    """A crop of the image, x0, y0, x1, y1, and what the model made of it."""

    box: tuple[int, int, int, int]
    image_size: tuple[int, int]  # (H, W) of the whole image
    embedding: Embedding

    @property
    def size(self) -> tuple[int, int]:
        x0, y0, x1, y1 = self.box
        return y1 - y0, x1 - x0


Known = Crop | Sequence[Crop] | None  # of an image: the whole, or its first crops


class MaskGenerator:
    """Segment Anything's automatic mask generation.

    Memory on the host, beside the model's own: PIXELS_AT_ONCE pixels at full size, and the bits of the candidates
    inside their boxes, at most 3 * points * H * W / 8 bytes whatever is found, and in practice a small part of it.
    A GPU too small for that many pixels gets fewer at a time, which changes no mask; `splits` counts how often.

    Args:
        sam: a segment_anything model, on the device it is to run on, which is changed when `speed` asks for it; or any
            model of `families`, which has a speed of its own.
        speed: how the network computes; by default exactly as segment-anything does.
        settings: those of SamAutomaticMaskGenerator (`SAM_SETTINGS`), with its defaults, or of the family's generator.

    Raises:
        TypeError: a setting SamAutomaticMaskGenerator does not have.
        SettingsError: a setting out of its bounds, or settings that do not go together.
    """

    def __init__(self, sam: Sam | Adapter, speed: Speed = EXACT, **settings: Any) -> None:
        defaults = SAM_SETTINGS | (dict(sam.defaults) if isinstance(sam, Adapter) else {})
        unknown = settings.keys() - defaults.keys()
        if unknown:
            raise TypeError(f"unknown settings {', '.join(sorted(unknown))}; known: {', '.join(defaults)}")
        self.settings = defaults | settings
        check_settings(self.settings)
        self._model = sam if isinstance(sam, Adapter) else OriginalSam(sam, speed)
        self.splits = 0
        self._several, self._again = self.settings.get("multimask_output", True), self.settings.get("use_m2m", False)
        self._masks_per_point = self._model.masks_per_point if self._several else 1
        self._threshold = self.settings.get("mask_threshold", self._model.mask_threshold)
        if self.settings["point_grids"] is None:
            self._grids = amg.build_all_layer_point_grids(
                self.settings["points_per_side"],
                self.settings["crop_n_layers"],
                self.settings["crop_n_points_downscale_factor"],
            )
        else:
            self._grids = [np.asarray(grid, np.float64) for grid in self.settings["point_grids"]]

    @torch.inference_mode()
    def embed(self, images: Sequence[NDArray[np.uint8]]) -> list[Crop]:
        """Whole (H, W, 3) uint8 RGB images through the image encoder in one call, for `generate`; not exact.

        Raises:
            ValueError: as `generate`.
        """
        return self._embed([(image, (0, 0, image.shape[1], image.shape[0])) for image in images])

    @torch.inference_mode()
    def embed_crops(self, image: NDArray[np.uint8], whole: Crop | None = None) -> list[Crop]:
        """All that the settings ask for of an image, for `generate`, which then gives what it gives without them.

        Raises as `generate`.
        """
        boxes = self._crop_boxes(image.shape[:2])[0]
        known = [] if whole is None else [whole]
        return known + [self._embed([(image, box)])[0] for box in boxes[len(known) :]]

    def kept_crops(self, size: tuple[int, int], features: Sequence[NDArray[np.floating[Any]]]) -> list[Crop]:
        """What `embed_crops` gave of an (H, W) image, from its features as they were kept: each map (crops, ...)."""
        boxes = self._crop_boxes(size)[0]
        return [
            Crop((x0, y0, x1, y1), size, self._model.kept((y1 - y0, x1 - x0), [each[number] for each in features]))
            for number, (x0, y0, x1, y1) in enumerate(boxes)
        ]

    def generate(self, image: NDArray[np.uint8], whole: Known = None) -> tuple[AtomMap, Records]:
        """Masks and records of an (H, W, 3) uint8 RGB image, in the order of SamAutomaticMaskGenerator.

        Args:
            whole: what `embed` gave of this image, or all that `embed_crops` did, if that was called.

        Boxes are x, y, width, height in pixels as it gives them: last minus first pixel, one less than the store's.
        An image in which nothing is found gives zero masks.

        Raises:
            ValueError: a side of more than 32,767 pixels, or an image so narrow that nothing is left of it at the
                size of the model.
            NotFinite: the model gave scores that are not finite.
        """
        return self.find(image, whole)()

    @torch.inference_mode()
    def find(self, image: NDArray[np.uint8], whole: Known = None) -> Callable[[], tuple[AtomMap, Records]]:
        """The part of `generate` that needs the model; what it returns does the rest, in another thread if need be."""
        size = image.shape[0], image.shape[1]
        get = self._candidates(image, whole).to_host()

        @torch.inference_mode()
        def finish() -> tuple[AtomMap, Records]:
            found = get()
            if self.settings["min_mask_region_area"] > 0 and found.masks:
                nms = max(self.settings["box_nms_thresh"], self.settings["crop_nms_thresh"])
                found = without_small_regions(found, size, self.settings["min_mask_region_area"], nms)
            masks = to_host(found.masks)()
            return AtomMap.from_pieces(len(masks), lambda number: masks[number].piece(), size), _records(found, masks)

        return finish

    def _crop_boxes(self, size: Sequence[int]) -> tuple[list[list[int]], list[int]]:
        """x0, y0, x1, y1 of the crops of an (H, W) image, itself the first, and the layer of each."""
        found: tuple[list[list[int]], list[int]] = amg.generate_crop_boxes(
            (size[0], size[1]), self.settings["crop_n_layers"], self.settings["crop_overlap_ratio"]
        )
        return found

    def _candidates(self, image: NDArray[np.uint8], whole: Known) -> Candidates:
        boxes, layers = self._crop_boxes(image.shape[:2])
        known = [] if whole is None else [whole] if isinstance(whole, Crop) else whole
        parts = []
        for number, (box, layer) in enumerate(zip(boxes, layers, strict=True)):
            crop = known[number] if number < len(known) else self._embed([(image, box)])[0]
            parts.append(self._masks_of_crop(crop, layer))
        found = Candidates.join(parts)
        if len(boxes) > 1:  # masks of smaller crops are preferred
            scores = (1 / box_area(found.crops)).to(found.boxes.device)
            found = found[_nms(found.boxes, scores, self.settings["crop_nms_thresh"])]
        return found

    def _masks_of_crop(self, crop: Crop, layer: int) -> Candidates:
        points = self._grids[layer] * np.array(crop.size)[None, ::-1]
        step = self.settings["points_per_batch"]
        batches = self._decoded(crop, [points[i : i + step] for i in range(0, len(points), step)])
        found = Candidates.join([self._masks_of_points(crop, *batch) for batch in batches])
        offset = torch.tensor([*crop.box[:2], *crop.box[:2]]).to(found.boxes.device)
        height, width = crop.image_size
        kept = ~amg.is_box_near_crop_edge(found.boxes - offset, list(crop.box), [0, 0, width, height])
        if self.settings["stability_score_thresh"] > 0:
            kept &= found.stability >= self.settings["stability_score_thresh"]
        found = found[torch.nonzero(kept)[:, 0]]
        return found[_nms(found.boxes, found.iou, self.settings["box_nms_thresh"])]

    def _decoded(
        self, crop: Crop, batches: Sequence[NDArray[np.float64]]
    ) -> Iterator[tuple[NDArray[np.float64], Tensor, Tensor, Soon]]:
        """Points, logits and predicted IoU of each batch, and these on their way to the host.

        A GPU is given the next batch before the host waits for anything of this one.
        """
        ahead: deque[tuple[NDArray[np.float64], Tensor, Tensor, Soon]] = deque()
        for points in batches:
            logits, iou = self._decode(crop, points)
            ahead.append((points, logits, iou, Soon(iou)))
            if len(ahead) > (iou.device.type == "cuda"):
                yield ahead.popleft()
        yield from ahead

    def _embed(self, pieces: Sequence[tuple[NDArray[np.uint8], Sequence[int]]]) -> list[Crop]:
        """Boxes x0, y0, x1, y1 of images, through the image encoder together."""
        for image, _ in pieces:
            if max(image.shape[:2]) > MAX_SIDE:
                raise ValueError(
                    f"{image.shape[1]}x{image.shape[0]} pixels; masks are generated for sides of at most {MAX_SIDE}"
                )
        embeddings = self._model.encode([image[y0:y1, x0:x1] for image, (x0, y0, x1, y1) in pieces])
        return [
            Crop((x0, y0, x1, y1), (image.shape[0], image.shape[1]), embedding)
            for (image, (x0, y0, x1, y1)), embedding in zip(pieces, embeddings, strict=True)
        ]

    def _masks_of_points(
        self, crop: Crop, points: NDArray[np.float64], logits: Tensor, iou: Tensor, scores: Soon
    ) -> Candidates:
        """The masks of (N, 2) points x, y of a crop that pass the filters, in the order of points and of the model.

        Those of a device may still be unstable: to ask for that now would be to wait.
        """
        known = scores.get()
        if not torch.isfinite(known).all():
            raise NotFinite("the mask decoder gave values that are not finite; check the checkpoint, or the precision")
        chosen = torch.arange(len(known))
        if self.settings["pred_iou_thresh"] > 0:
            chosen = chosen[known > self.settings["pred_iou_thresh"]]
        at_once = max(1, PIXELS_AT_ONCE[iou.device.type] // (crop.size[0] * crop.size[1]))
        kept, stability, boxes = [chosen[:0]], [iou[:0]], [torch.empty(0, 4, dtype=torch.int64, device=iou.device)]
        masks: list[PackedMask | DeviceMask] = []
        while len(chosen):
            some = chosen[:at_once]
            try:
                full = self._full_size(crop, logits, some)
            except torch.OutOfMemoryError:
                if len(some) == 1:
                    raise
                full = None
            if full is None:  # outside the handler, where nothing holds on to the memory any more
                at_once = len(some) // 2
                self.splits += 1
                torch.cuda.empty_cache()
                continue
            kept.append(full[0])
            stability.append(full[1])
            boxes.append(full[2])
            masks += full[3]
            chosen = chosen[at_once:]
        positions = torch.cat(kept)
        return Candidates(
            iou[positions.to(iou.device)],
            torch.cat(stability),
            torch.as_tensor(points, dtype=self._model.point_dtype)[positions // self._masks_per_point]
            + torch.tensor(crop.box[:2]),
            torch.cat(boxes),
            torch.tensor(crop.box).expand(len(masks), 4),
            masks,
        )

    def _full_size(
        self, crop: Crop, logits: Tensor, some: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, list[PackedMask | DeviceMask]]:
        """Those of the masks `some` that are stable, with their scores, boxes and pixels at the size of the crop; on a
        device all of them.
        """
        planes = self._model.full_size(logits[some.to(logits.device)], crop.embedding)
        stable = self._stability(planes)
        x, y = crop.box[:2]
        if planes.device.type != "cpu":
            above = planes > self._threshold
            boxes = boxes_there(above) + torch.tensor([x, y, x, y]).to(planes.device)
            return some, stable, boxes, [DeviceMask(rows, (x, y)) for rows in pack_there(above)]
        if self.settings["stability_score_thresh"] > 0:
            good = stable >= self.settings["stability_score_thresh"]
            if not good.all():
                planes, some, stable = planes[good], some[good], stable[good]
        masks = [PackedMask.of(rows, (x, y)) for rows in pack_above(planes, self._threshold)]
        return some, stable, torch.tensor([mask.box for mask in masks], dtype=torch.int64).reshape(-1, 4), [*masks]

    def _decode(self, crop: Crop, points: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        """(masks, h, w) logits at low resolution and (masks,) predicted IoU of the masks of N points."""
        logits, iou = self._model.decode(crop.embedding, points, several=self._several)
        if not self._again:
            return logits, iou
        points, step = np.repeat(points, self._masks_per_point, axis=0), self.settings["points_per_batch"]
        prompts = logits.clamp(-LOGITS, LOGITS)
        parts = [
            self._model.decode(crop.embedding, points[i : i + step], prompts[i : i + step], several=False)
            for i in range(0, len(points), step)
        ]
        return torch.cat([logits for logits, _ in parts]), torch.cat([iou for _, iou in parts])

    def _stability(self, planes: Tensor) -> Tensor:
        """(n,) float32: pixels above the threshold raised by the offset, over those above it lowered by as much."""
        threshold, offset = self._threshold, self.settings["stability_score_offset"]
        return count_above(planes, threshold + offset) / count_above(planes, threshold - offset)


def without_small_regions(found: Candidates, size: tuple[int, int], min_area: int, nms_thresh: float) -> Candidates:
    """On the host: holes and islands of fewer pixels filled and dropped, and of masks that then coincide the unchanged
    preferred.

    As the reference does, a changed mask keeps its scores, and its box follows only where it changed.
    """
    masks, unchanged = [], []
    packed_masks: list[PackedMask | DeviceMask] = [*to_host(found.masks)()]
    for packed in packed_masks:
        assert isinstance(packed, PackedMask)
        mask, filled = amg.remove_small_regions(packed.full(*size), min_area, mode="holes")
        mask, cleared = amg.remove_small_regions(mask, min_area, mode="islands")
        masks.append(np.packbits(mask, axis=1) if filled or cleared else None)
        unchanged.append(float(not filled and not cleared))
    boxes = found.boxes.clone()
    for number, bits in enumerate(masks):
        if bits is not None:
            packed_masks[number] = changed = PackedMask.of(bits)
            boxes[number] = torch.tensor(changed.box)
    kept = _nms(boxes, torch.tensor(unchanged), nms_thresh)
    return Candidates(found.iou, found.stability, found.points, boxes, found.crops, packed_masks)[kept]


def _nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Positions of the boxes that stay, by falling score."""
    return batched_nms(boxes.float(), scores, torch.zeros_like(scores), iou_threshold=threshold)


def _records(found: Candidates, masks: Sequence[PackedMask]) -> Records:
    corners, crops = found.boxes.numpy().astype(float), found.crops.numpy().astype(float)
    columns = {
        "area": np.array([mask.area for mask in masks], float),
        "predicted_iou": found.iou.numpy().astype(float),
        "stability_score": found.stability.numpy().astype(float),
        "point_x": found.points[:, 0].numpy(),
        "point_y": found.points[:, 1].numpy(),
    }
    for name, box in (("bbox", corners), ("crop_box", crops)):
        sides = (box[:, 0], box[:, 1], box[:, 2] - box[:, 0], box[:, 3] - box[:, 1])
        columns |= {f"{name}_{side}": values for side, values in zip("xywh", sides, strict=True)}
    return {name: columns[name] for name in RECORD_COLUMNS}
