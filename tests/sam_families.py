"""Small models of the real classes of each family of Segment Anything, with random weights, and their generators.

Random masks lie anywhere and are dropped at the edges of crops, so masks are made to lie around their points: a hook
after the mask decoder adds how near a pixel is to the point, and reference and ours see the same.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor, nn

SAM2_SIDE = 128
# What a small SAM 2 does not show of itself.
SAM2_YAML = """
model:
  image_encoder:
    trunk: {num_heads: 1, global_att_blocks: [3], window_spec: [4, 4, 4, 4]}
  image_size: 128
"""


def randomise(module: nn.Module, seed: int, spread: float = 0.2) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return module.eval()


def around_points(decoder: nn.Module, point_type: Tensor) -> None:
    """Adds to the logits of a decoder how near each pixel is to the point."""

    def add(_: nn.Module, __: Any, given: dict[str, Any], found: Any) -> Any:
        masks, *rest = found
        sparse = given["sparse_prompt_embeddings"]
        places = given.get("image_positional_embeddings", given.get("image_pe"))
        point = sparse.reshape(-1, *sparse.shape[-2:])[:, 0] - point_type
        nearness = torch.einsum("bc,chw->bhw", point, places[0]) / places[0, :, 0, 0].square().sum()
        nearness = nn.functional.interpolate(nearness[:, None], masks.shape[-2:], mode="bicubic")
        levels = torch.linspace(0.95, 0.7, masks.shape[-3])[:, None, None]
        added = 8 * (nearness - levels) + 0.5 * masks.reshape(-1, *masks.shape[-3:]).tanh()
        return (added.reshape(masks.shape), *rest)

    decoder.register_forward_hook(add, with_kwargs=True)


def small_sam2(seed: int = 0, width: int = 32, frequencies: float = 0.5) -> Any:
    """A SAM2Base as the package builds its image predictors, without what is for videos; for a seed always the same."""
    torch.manual_seed(seed)
    from sam2.modeling.backbones.hieradet import Hiera
    from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
    from sam2.modeling.position_encoding import PositionEmbeddingSine
    from sam2.modeling.sam2_base import SAM2Base

    trunk = Hiera(
        embed_dim=16, num_heads=1, stages=(1, 1, 2, 1), global_att_blocks=(3,), window_spec=(4, 4, 4, 4),
        window_pos_embed_bkg_spatial_size=(7, 7),
    )  # fmt: skip
    neck = FpnNeck(
        PositionEmbeddingSine(width), width, trunk.channel_list, fpn_top_down_levels=[2, 3], fpn_interp_model="nearest"
    )
    sam = SAM2Base(
        ImageEncoder(trunk, neck, scalp=1), None, None, image_size=SAM2_SIDE, directly_add_no_mem_embed=True,
        use_high_res_features_in_sam=True, iou_prediction_use_sigmoid=True, pred_obj_scores=True,
        pred_obj_scores_mlp=True, use_multimask_token_for_obj_ptr=True,
        sam_mask_decoder_extra_args={
            "dynamic_multimask_via_stability": True,
            "dynamic_multimask_stability_delta": 0.05,
            "dynamic_multimask_stability_thresh": 0.98,
        },
    )  # fmt: skip
    randomise(sam, seed)
    with torch.no_grad():
        sam.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.mul_(frequencies)
    return sam


def localised_sam2(sam: Any) -> Any:
    around_points(sam.sam_mask_decoder, sam.sam_prompt_encoder.point_embeddings[1].weight.detach())
    return sam


def sam2_generator(sam: Any, **settings: Any) -> Any:
    """The package's own, of a model of `SAM2_SIDE`: it has the sizes of maps of 1024 pixels written in."""
    from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it scripts its transforms
        generator = SAM2AutomaticMaskGenerator(sam, **settings)
    generator.predictor._bb_feat_sizes = [(SAM2_SIDE // stride,) * 2 for stride in (4, 8, 16)]
    return generator


def sam2_model_of_transformers(state: dict[str, Tensor]) -> Any:
    """A Sam2Model with the weights of `small_sam2`."""
    import transformers

    config = transformers.Sam2Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam2_hiera_det_model", "hidden_size": 16, "num_attention_heads": 1,
                "image_size": [SAM2_SIDE, SAM2_SIDE], "blocks_per_stage": [1, 1, 2, 1],
                "embed_dim_per_stage": [16, 32, 64, 128], "num_attention_heads_per_stage": [1, 2, 4, 8],
                "window_size_per_stage": [4, 4, 4, 4], "global_attention_blocks": [3],
                "window_positional_embedding_background_size": [7, 7],
            },
            "backbone_channel_list": [128, 64, 32, 16], "fpn_hidden_size": 32,
            "backbone_feature_sizes": [[SAM2_SIDE // stride] * 2 for stride in (4, 8, 16)],
        },
        prompt_encoder_config={"hidden_size": 32, "image_size": SAM2_SIDE, "mask_input_channels": 16},
        mask_decoder_config={"hidden_size": 32, "iou_head_hidden_dim": 256, "mlp_dim": 2048},
    )  # fmt: skip
    model = transformers.Sam2Model(config)
    points = [state[f"sam_prompt_encoder.point_embeddings.{number}.weight"] for number in range(4)]
    renamed = {_renamed(key): value for key, value in state.items()}
    renamed["prompt_encoder.point_embed.weight"] = torch.cat(points)
    places = "shared_image_embedding.positional_embedding"
    renamed["prompt_encoder.shared_embedding.positional_embedding"] = renamed[places]
    own = model.state_dict()
    assert own.keys() <= renamed.keys(), own.keys() - renamed.keys()
    model.load_state_dict({key: renamed[key] for key in own})
    return model.eval()


def _renamed(key: str) -> str:
    """The name in transformers of a weight of the package `sam2`."""
    for old, new in (
        ("image_encoder.trunk.", "vision_encoder.backbone."),
        ("image_encoder.neck.", "vision_encoder.neck."),
        (".conv.", "."),
        ("patch_embed.proj.", "patch_embed.projection."),
        ("sam_prompt_encoder.pe_layer.", "shared_image_embedding."),
        ("positional_encoding_gaussian_matrix", "positional_embedding"),
        ("sam_prompt_encoder.mask_downscaling.0", "prompt_encoder.mask_embed.conv1"),
        ("sam_prompt_encoder.mask_downscaling.1", "prompt_encoder.mask_embed.layer_norm1"),
        ("sam_prompt_encoder.mask_downscaling.3", "prompt_encoder.mask_embed.conv2"),
        ("sam_prompt_encoder.mask_downscaling.4", "prompt_encoder.mask_embed.layer_norm2"),
        ("sam_prompt_encoder.mask_downscaling.6", "prompt_encoder.mask_embed.conv3"),
        ("sam_prompt_encoder.", "prompt_encoder."),
        ("sam_mask_decoder.output_upscaling.0", "mask_decoder.upscale_conv1"),
        ("sam_mask_decoder.output_upscaling.1", "mask_decoder.upscale_layer_norm"),
        ("sam_mask_decoder.output_upscaling.3", "mask_decoder.upscale_conv2"),
        ("sam_mask_decoder.", "mask_decoder."),
        ("out_proj", "o_proj"),
        ("norm_final_attn", "layer_norm_final_attn"),
        ("no_mem_embed", "no_memory_embedding"),
    ):
        key = key.replace(old, new)
    key = re.sub(r"\.norm(\d)\.", r".layer_norm\1.", key)
    if match := re.search(r"(mlp|_mlps\.\d+|iou_prediction_head|pred_obj_score_head)\.layers\.(\d)\.", key):
        last = "1" if match[1] == "mlp" else "2"
        middle = "proj_in." if match[2] == "0" else "proj_out." if match[2] == last else "layers.0."
        key = key.replace(match[0], f"{match[1]}.{middle}")
    return key


def generated(generator: Any, image: np.ndarray) -> list[dict[str, Any]]:
    """What a generator of segment-anything or sam2 finds; alone it stumbles over a crop in which nothing is found."""
    with torch.no_grad():
        return list(lenient(generator).generate(image))


def compared(theirs: list[dict[str, Any]], found: Any, scores: float = 0.0) -> int:
    """Asserts that masks and records are the same, in the same order; how many there are.

    Args:
        scores: what predicted IoU may differ by, where the classes of two packages compute.
    """
    atoms, records = found
    assert atoms.n_masks == len(theirs)
    for number, (mask, record) in enumerate(zip(atoms.to_masks(), theirs, strict=True)):
        assert np.array_equal(mask, record["segmentation"]), number
        mine = {name: float(column[number]) for name, column in records.items()}
        expected = {name: float(record[name]) for name in ("area", "predicted_iou", "stability_score")}
        expected |= dict(zip(("point_x", "point_y"), record["point_coords"][0], strict=True))
        for name in ("bbox", "crop_box"):
            expected |= {f"{name}_{side}": float(v) for side, v in zip("xywh", record[name], strict=True)}
        assert mine.keys() == expected.keys()
        for name, value in expected.items():
            close = scores if name == "predicted_iou" else 0.0
            assert np.isclose(mine[name], value, rtol=0, atol=close, equal_nan=True), (name, mine[name], value)
    return len(theirs)


def sam_model_of_transformers(sam: Any) -> Any:
    """A SamModel with the sizes and weights of a small segment_anything model."""
    import transformers

    encoder, side = sam.image_encoder, sam.image_encoder.img_size
    model = transformers.SamModel(sam_config("SamConfig", side, encoder.patch_embed.proj.kernel_size[0]))
    renamed = {_renamed_sam(key): value for key, value in sam.state_dict().items()}
    renamed["prompt_encoder.shared_embedding.positional_embedding"] = renamed[
        "shared_image_embedding.positional_embedding"
    ]
    own = model.state_dict()
    assert own.keys() <= renamed.keys(), own.keys() - renamed.keys()
    model.load_state_dict({key: renamed[key] for key in own})
    return model.eval()


def sam_config(name: str, side: int = 64, patch: int = 16, **decoder: Any) -> Any:
    """Of a SamModel or SamHQModel of the sizes of `random_sam`."""
    import transformers

    return getattr(transformers, name)(
        vision_config={
            "hidden_size": 32, "output_channels": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": side, "patch_size": patch, "window_size": 2, "global_attn_indexes": [1], "mlp_dim": 128,
            "num_pos_feats": 16,
        },
        prompt_encoder_config={
            "hidden_size": 32, "image_size": side, "patch_size": patch, "image_embedding_size": side // patch,
            "mask_input_channels": 16,
        },
        mask_decoder_config={
            "hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 8, "iou_head_hidden_dim": 32, **decoder,
        },
    )  # fmt: skip


def hq_model_of_transformers(seed: int = 0) -> Any:
    import transformers

    torch.manual_seed(seed)
    model = randomise(transformers.SamHQModel(sam_config("SamHQConfig", vit_dim=32)), seed)
    with torch.no_grad():
        model.shared_image_embedding.positional_embedding.mul_(0.5)
    return model


def sam3_model_of_transformers(seed: int = 0) -> Any:
    """A Sam3TrackerModel for images of 112 pixels."""
    import transformers

    torch.manual_seed(seed)
    config = transformers.Sam3TrackerConfig(
        vision_config={
            "backbone_config": {
                "model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 2, "image_size": 112, "pretrain_image_size": 56, "patch_size": 14,
                "window_size": 4, "global_attn_indexes": [1],
            },
            "fpn_hidden_size": 32, "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        },
        prompt_encoder_config={"hidden_size": 32, "image_size": 112, "patch_size": 14, "mask_input_channels": 16},
        mask_decoder_config={"hidden_size": 32, "iou_head_hidden_dim": 32, "mlp_dim": 64},
    )  # fmt: skip
    model = randomise(transformers.Sam3TrackerModel(config), seed)
    with torch.no_grad():
        model.shared_image_embedding.positional_embedding.mul_(0.5)
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(
            model.shared_image_embedding.positional_embedding
        )
    return model


def _renamed_sam(key: str) -> str:
    """The name in transformers of a weight of segment_anything."""
    for old, new in (
        ("image_encoder.blocks.", "vision_encoder.layers."),
        ("image_encoder.neck.0.", "vision_encoder.neck.conv1."),
        ("image_encoder.neck.1.", "vision_encoder.neck.layer_norm1."),
        ("image_encoder.neck.2.", "vision_encoder.neck.conv2."),
        ("image_encoder.neck.3.", "vision_encoder.neck.layer_norm2."),
        ("image_encoder.", "vision_encoder."),
        ("point_embeddings.", "point_embed."),
        ("prompt_encoder.", "sam_prompt_encoder."),
        ("mask_decoder.", "sam_mask_decoder."),
    ):
        key = key.replace(old, new)
    return _renamed(key).replace("o_proj", "out_proj")


def small_mobile_sam(seed: int = 0, side: int = 128) -> Any:
    """MobileSAM of its own package, small: its encoder has the 64 x 64 maps of images of 1024 pixels written in."""
    import mobile_sam.modeling as parts
    from mobile_sam.modeling.tiny_vit_sam import TinyViT

    class Encoder(TinyViT):
        def forward(self, x: Tensor) -> Tensor:
            x = self.patch_embed(x)
            for layer in self.layers:
                x = layer(x)
            return self.neck(x.unflatten(1, (side // 16, side // 16)).permute(0, 3, 1, 2))

    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = Encoder(  # 320 channels are those that keep their resolution
            side, num_classes=10, embed_dims=[16, 32, 48, 320], depths=[1, 2, 1, 1], num_heads=[1, 2, 3, 10],
            window_sizes=[7, 7, 14, 7], drop_path_rate=0.0,
        )  # fmt: skip
    sam = parts.Sam(
        encoder,
        parts.PromptEncoder(256, (side // 16, side // 16), (side, side), 16),
        parts.MaskDecoder(transformer=parts.TwoWayTransformer(2, 256, 8, 64), transformer_dim=256),
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*sam.named_parameters(), *sam.named_buffers()]:
            if name.endswith("running_var"):
                tensor.mul_(1 + torch.rand(tensor.shape, generator=generator))
            elif tensor.is_floating_point() and (tensor.dim() == 1 or "bias" in name):
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
        sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.mul_(0.5)
    return sam.train().eval()  # which is when its attention takes the biases up


def point_type(model: Any) -> Tensor:
    """What a model of transformers adds to each foreground point."""
    found = model.prompt_encoder.point_embed
    return found[1].weight.detach() if isinstance(found, nn.ModuleList) else found.weight.detach()[1]


class _PaddedPredictor:
    """What segment-anything's generator asks of its predictor, of a model of transformers."""

    def __init__(self, model: Any) -> None:
        self._model, self.model = model, SimpleNamespace(mask_threshold=0.0)
        self.transform = ResizeLongestSide(model.config.vision_config.image_size)
        self.device = torch.device("cpu")
        self._sam = Sam(
            _OfSize(self.transform.target_length), nn.Identity(), nn.Identity(),
            [123.675, 116.28, 103.53], [58.395, 57.12, 57.375],
        )  # fmt: skip

    def set_image(self, image: np.ndarray) -> None:
        resized = torch.as_tensor(self.transform.apply_image(image)).permute(2, 0, 1)[None]
        self.size, self.input_size = image.shape[:2], tuple(resized.shape[-2:])
        self.found = self._model.get_image_embeddings(self._sam.preprocess(resized))

    def predict_torch(self, points: Tensor, labels: Tensor, multimask_output: bool, return_logits: bool) -> Any:
        more = {"image_embeddings": self.found}
        if isinstance(self.found, tuple):
            more = {"image_embeddings": self.found[0], "intermediate_embeddings": self.found[1]}
        found = self._model(input_points=points[None], input_labels=labels[None], multimask_output=True, **more)
        masks = self._sam.postprocess_masks(found.pred_masks[0], self.input_size, self.size)
        return masks, found.iou_scores[0], found.pred_masks[0]

    def reset_image(self) -> None:
        self.found = None


class _OfSize(nn.Module):
    def __init__(self, img_size: int) -> None:
        super().__init__()
        self.img_size = img_size


class _StretchedPredictor:
    """What sam2's generator asks of its predictor, of a model of transformers, with the library's own processor."""

    def __init__(self, model: Any, processor: Callable[[np.ndarray], Tensor]) -> None:
        self._model, self._processor, self.device = model, processor, torch.device("cpu")
        side = model.prompt_encoder.input_image_size

        def transform_coords(coords: Tensor, normalize: bool, orig_hw: tuple[int, int]) -> Tensor:
            return torch.stack([coords[..., 0] / orig_hw[1], coords[..., 1] / orig_hw[0]], dim=-1) * side

        self._transforms = SimpleNamespace(transform_coords=transform_coords)

    def set_image(self, image: np.ndarray) -> None:
        self.size = image.shape[:2]
        self.found = self._model.get_image_embeddings(self._processor(image))

    def _predict(self, points: Tensor, labels: Tensor, multimask_output: bool, return_logits: bool) -> Any:
        found = self._model(
            input_points=points[None], input_labels=labels[None], image_embeddings=self.found, multimask_output=True
        )
        masks = nn.functional.interpolate(found.pred_masks[0], self.size, mode="bilinear", align_corners=False)
        return masks, found.iou_scores[0], found.pred_masks[0]

    def reset_predictor(self) -> None:
        self.found = None


def lenient(generator: Any) -> Any:
    """A generator of a package, which stumbles over a crop in which nothing is found, without that."""
    process = generator._process_crop

    def process_crop(*arguments: Any) -> Any:
        data = process(*arguments)
        data["crop_boxes"] = data["crop_boxes"].reshape(-1, 4)
        return data

    generator._process_crop = process_crop
    return generator


def padded_generator(model: Any, **settings: Any) -> Any:
    """The generator of segment-anything over a SamModel or SamHQModel of transformers."""
    from segment_anything import SamAutomaticMaskGenerator

    side = model.config.vision_config.image_size
    stand_in = SimpleNamespace(image_encoder=SimpleNamespace(img_size=side), mask_threshold=0.0, eval=lambda: None)
    generator = SamAutomaticMaskGenerator(stand_in, **settings)
    generator.predictor = _PaddedPredictor(model)
    return lenient(generator)


def stretched_generator(adapter: Any, ours: Any) -> Any:
    """The generator of sam2 over an adapter's model of transformers, with the settings of a MaskGenerator."""
    from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator

    generator = object.__new__(SAM2AutomaticMaskGenerator)
    vars(generator).update(ours.settings, point_grids=ours._grids, output_mode="binary_mask")
    generator.predictor = _StretchedPredictor(adapter._model, lambda piece: adapter._inputs([piece]))
    return lenient(generator)
