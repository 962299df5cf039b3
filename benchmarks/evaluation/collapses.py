"""Networks and images that make deblurring collapse, and others beside them: what guard.py measures on.

Two sides that share no network, no sharp image and no way of going wrong: limits are fixed on "fit", and "test" says
how good they are.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib import cbook
from numpy.typing import NDArray
from skimage import data
from torch import Tensor, nn

from samdeblur.models import NAFNet, load_network
from samdeblur.pipeline.sources.blur import BlurModel
from samdeblur.pipeline.sources.camera import Sensor, decode, encode
from samdeblur.pipeline.sources.sample import OOD_MODEL, SampleSource
from samdeblur.pipeline.sources.worlds import MODEL as WORLD
from samdeblur.pipeline.sources.worlds import SPLITS as WORLD_SPLITS
from samdeblur.train.losses import psnr_loss

ImageArray = NDArray[np.uint8]  # (H, W, 3) RGB
Pair = tuple[ImageArray, ImageArray]  # blurred, sharp
SIDE = 256


# Images


@cache
def worlds(split: str, first: int, count: int) -> tuple[Pair, ...]:
    """Rendered scenes of 192 px: as they were exposed, and sharp."""
    model = replace(WORLD, size=(192, 192))
    scenes = [model.render((WORLD_SPLITS[split], number)) for number in range(first, first + count)]
    return tuple((scene.blurred, scene.sharp) for scene in scenes)


@cache
def fit_images() -> tuple[ImageArray, ...]:
    """Sharp images that the thresholds are fixed on: the photographs of the sample's training split, and worlds."""
    source = SampleSource.of("sample", "train")
    photos = [source.read(key).sharp for key in source.keys]
    return tuple(photo[:SIDE, :SIDE] for photo in photos) + tuple(sharp for _, sharp in worlds("val", 0, 7))


@cache
def test_images() -> tuple[ImageArray, ...]:
    """Sharp images that nothing was fixed on: other photographs, micrographs, pages, and other worlds."""
    hopper = cv2.imread(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))[..., ::-1]
    windows = [
        (data.chelsea(), 20, 60), (data.chelsea(), 40, 190), (data.coffee(), 20, 60), (data.coffee(), 130, 300),
        (data.camera(), 40, 130), (data.camera(), 200, 20), (hopper, 40, 130), (hopper, 300, 200),
        (data.moon(), 100, 100), (data.coins(), 30, 60), (data.cell(), 200, 150), (data.microaneurysms(), 0, 0),
        (data.page(), 0, 0), (data.page(), 0, 128), (data.text(), 0, 100),
    ]  # fmt: skip
    cut = [np.atleast_3d(photo)[top : top + SIDE, left : left + SIDE] for photo, top, left in windows]
    coloured = tuple(np.ascontiguousarray(np.broadcast_to(piece, (*piece.shape[:2], 3))) for piece in cut)
    return coloured + tuple(sharp for _, sharp in worlds("test", 0, 7))


# Blur


@cache
def long_blur(number: int) -> Pair:
    """A test image under long paths, clipped highlights, JPEG."""
    return OOD_MODEL.render(test_images()[number], 1000 + number)


def convolved(image: ImageArray, kernel: NDArray[np.float32], noise: float = 0.0, seed: int = 0) -> Pair:
    """An image under a kernel, in linear light, rounded to 8 bits."""
    light = cv2.filter2D(decode(image), -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101)
    return Sensor(0.0, noise).expose(light, np.random.default_rng(seed)), image


def gaussian(sigma: float) -> NDArray[np.float32]:
    line = cv2.getGaussianKernel(2 * math.ceil(3 * sigma) + 1, sigma, cv2.CV_32F)
    return line @ line.T


def disc(radius: float) -> NDArray[np.float32]:
    """A lens out of focus."""
    reach = math.ceil(radius) + 1
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return np.clip(radius + 0.5 - np.hypot(x, y), 0, 1).astype(np.float32)


def line(length: float, angle: float) -> NDArray[np.float32]:
    """A camera that moves straight on."""
    reach = math.ceil(length / 2) + 1
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    along, across = x * math.cos(angle) + y * math.sin(angle), -x * math.sin(angle) + y * math.cos(angle)
    return (np.clip(length / 2 + 0.5 - np.abs(along), 0, 1) * np.clip(1 - np.abs(across), 0, 1)).astype(np.float32)


def blurred_by(kind: str, image: ImageArray, rng: np.random.Generator) -> Pair:
    """A pair of a kind of blur that networks are trained on."""
    seed = int(rng.integers(2**31))
    if kind == "gaussian":
        return convolved(image, gaussian(rng.uniform(1.0, 2.0)))
    if kind == "line":
        return convolved(image, line(9.0, 0.0))
    if kind == "lines":
        return convolved(image, line(rng.uniform(3, 11), rng.uniform(0, math.pi)))
    if kind == "disc":
        return convolved(image, disc(rng.uniform(1.5, 3.5)))
    if kind == "soft":
        return convolved(image, gaussian(rng.uniform(0.6, 1.2)))
    if kind == "motion":
        return BlurModel().render(image, seed)
    raise ValueError(kind)


# Networks


class Plain(nn.Module):
    """Six convolutions and no pooling: a network of another family."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 5, padding=2), nn.ReLU()]
        for _ in range(4):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Conv2d(width, 3, 5, padding=2))

    def forward(self, image: Tensor) -> Tensor:
        return image + self.body(image)


@dataclass(frozen=True)
class Training:
    """How a network comes about."""

    side: str  # "fit": thresholds are fixed on it; "test": they are measured on it
    blur: str
    build: Callable[[], nn.Module]
    steps: int = 500
    rate: float = 2e-3
    crop: int = 64
    batch: int = 4
    seed: int = 0


TRAININGS: dict[str, Training] = {
    "worlds": Training("fit", "worlds", lambda: NAFNet(8, [1, 1, 1], 1, [1, 1, 1]), seed=1),
    "gaussian": Training("fit", "gaussian", lambda: NAFNet(8, [1, 1], 1, [1, 1]), seed=2),
    "line": Training("fit", "line", lambda: NAFNet(8, [1, 1], 1, [1, 1]), seed=3),
    "motion": Training("fit", "motion", lambda: NAFNet(8, [1, 1, 1], 1, [1, 1, 1]), seed=4),
    "rushed": Training("fit", "worlds", lambda: NAFNet(8, [1, 1], 1, [1, 1]), steps=80, rate=1e-1, seed=5),
    "disc": Training("test", "disc", lambda: NAFNet(12, [1, 1], 1, [1, 1]), seed=6),
    "lines": Training("test", "lines", lambda: NAFNet(8, [1, 2], 2, [1, 1]), seed=7),
    "soft": Training("test", "soft", Plain, steps=800, rate=1e-3, seed=8),
    "hasty": Training("test", "disc", lambda: NAFNet(8, [1, 1, 1], 1, [1, 1, 1]), steps=100, rate=6e-2, seed=9),
}


def training_pairs(training: Training) -> tuple[Pair, ...]:
    """What a network is trained on: worlds that no image of either side shows, and for the test side photographs."""
    rng = np.random.default_rng(training.seed)
    if training.blur == "worlds":
        return worlds("train", 0, 40)
    sharp = [image for _, image in worlds("train", 0 if training.side == "fit" else 40, 40)]
    return tuple(blurred_by(training.blur, image, rng) for image in sharp)


def trained(name: str, folder: Path) -> nn.Module:
    """A network of a name, from the folder if it is there."""
    training = TRAININGS[name]
    torch.manual_seed(training.seed)
    network = training.build()
    file = folder / f"{name}.pt"
    if file.is_file():
        network.load_state_dict(torch.load(file, weights_only=True))
        return network.eval()
    pairs = [tuple(to_tensor(one)[0] for one in pair) for pair in training_pairs(training)]
    rng = np.random.default_rng(training.seed)
    optimiser = torch.optim.AdamW(network.parameters(), training.rate, betas=(0.9, 0.9), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, training.steps, 1e-6)
    for _ in range(training.steps):
        crops = []
        for number in rng.integers(len(pairs), size=training.batch):
            top, left = rng.integers(pairs[number][0].shape[-1] - training.crop, size=2)
            both = torch.stack(pairs[number])[..., top : top + training.crop, left : left + training.crop]
            both = both.rot90(int(rng.integers(4)), (-2, -1)) if training.blur != "line" else both
            crops.append(both.flip(-1) if rng.random() < 0.5 else both)
        blurred, sharp = torch.stack(crops).unbind(1)
        loss = psnr_loss(network(blurred), sharp)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), file)
    return network.eval()


def to_tensor(image: ImageArray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255


# What is done to images and networks


@dataclass(frozen=True)
class Case:
    """A network's answer to an image.

    Attributes:
        network, condition: its families.
        image: number of the sharp image.
        blurred, sharp: the pair.
        output: what the network gives, (1, 3, H, W), not clamped.
        run: the network as it is here; None for ideal results.
    """

    side: str
    network: str
    condition: str
    image: int
    blurred: ImageArray
    sharp: ImageArray
    output: Tensor
    run: nn.Module | None


def to_image(light: NDArray[np.floating]) -> ImageArray:
    return np.round(np.clip(light, 0, 1) * 255).astype(np.uint8)


def noisy(pair: Pair, rng: np.random.Generator) -> Pair:
    """Gaussian noise of 1 to 12% of full scale."""
    sigma = math.exp(rng.uniform(math.log(0.01), math.log(0.12)))
    return to_image(pair[0] / 255 + rng.normal(0, sigma, pair[0].shape)), pair[1]


def toned(pair: Pair, rng: np.random.Generator) -> Pair:
    """Another gamma, of image and sharp image alike."""
    gamma = math.exp(rng.uniform(-1, 1))
    return to_image((pair[0] / 255) ** gamma), to_image((pair[1] / 255) ** gamma)


def compressed(pair: Pair, rng: np.random.Generator) -> Pair:
    """JPEG of quality 8 to 50."""
    quality = int(rng.integers(8, 50))
    done = cv2.imencode(".jpg", pair[0][..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.ascontiguousarray(np.asarray(cv2.imdecode(done, cv2.IMREAD_COLOR))[..., ::-1]), pair[1]


def dark(pair: Pair, rng: np.random.Generator) -> Pair:
    """A tenth to half of the light, with the noise that comes with it."""
    gain = np.float32(rng.uniform(0.1, 0.5))
    sensor = Sensor(shot_noise=math.exp(rng.uniform(math.log(1e-4), math.log(1e-2))), read_noise=2e-3)
    return sensor.expose(decode(pair[0]) * gain, rng), encode(decode(pair[1]) * gain)


def hot(pair: Pair, rng: np.random.Generator) -> Pair:
    """Up to one pixel in fifty is fully lit in some channel, or dead."""
    share = math.exp(rng.uniform(math.log(2e-4), math.log(2e-2)))
    where = rng.random(pair[0].shape)
    return np.where(where < share / 2, 0, np.where(where < share, 255, pair[0])).astype(np.uint8), pair[1]


def hazy(pair: Pair, rng: np.random.Generator) -> Pair:
    """Little contrast, of image and sharp image alike."""
    share, veil = rng.uniform(0.15, 0.6), rng.uniform(0.3, 0.8)
    blurred, sharp = (to_image(share * image / 255 + (1 - share) * veil) for image in pair)
    return blurred, sharp


def local(pair: Pair, rng: np.random.Generator) -> Pair:
    """One thing is blurred, the rest is sharp; as in ReLoBlur."""
    height, width = pair[0].shape[:2]
    y, x = np.mgrid[:height, :width]
    centre, radius = rng.uniform(0.25, 0.75, 2) * (height, width), rng.uniform(0.1, 0.3) * height
    share = np.clip((radius - np.hypot(y - centre[0], x - centre[1])) / 8 + 0.5, 0, 1)[..., None]
    return to_image((pair[0] * share + pair[1] * (1 - share)) / 255), pair[1]


def enlarged(pair: Pair, rng: np.random.Generator) -> Pair:
    """An image that was blown up, with or without blur before: no detail in the finest scale."""
    size = pair[0].shape[1::-1]
    factor = rng.uniform(1.3, 2.5)
    small = cv2.resize(pair[int(rng.integers(2))], None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, size, interpolation=cv2.INTER_CUBIC), pair[1]


def disturbed(network: nn.Module, rng: np.random.Generator) -> nn.Module:
    """Weights with noise of 5 to 100% of their spread."""
    amount = math.exp(rng.uniform(math.log(0.05), 0))
    noise = torch.Generator().manual_seed(int(rng.integers(2**31)))
    other = copy.deepcopy(network)
    with torch.no_grad():
        for weight in other.parameters():
            if weight.numel() > 1:
                weight += amount * weight.std() * torch.randn(weight.shape, generator=noise)
    return other


def missing(network: nn.Module, rng: np.random.Generator) -> nn.Module:
    """One to six convolutions were not in the checkpoint, and are as a new network's."""
    other = copy.deepcopy(network)
    layers = [module for module in other.modules() if isinstance(module, nn.Conv2d)]
    torch.manual_seed(int(rng.integers(2**31)))
    for number in rng.choice(len(layers), int(rng.integers(1, 7)), replace=False):
        layers[number].reset_parameters()
    return other


def quantised(network: nn.Module, rng: np.random.Generator) -> nn.Module:
    """Weights of 3 to 6 bits, a scale for each tensor."""
    levels = 2 ** int(rng.integers(2, 6)) - 1
    other = copy.deepcopy(network)
    with torch.no_grad():
        for weight in other.parameters():
            scale = weight.abs().max().clamp(min=1e-12) / levels
            weight.copy_((weight / scale).round() * scale)
    return other


def stuck(network: nn.Module, rng: np.random.Generator) -> nn.Module:
    """One layer's weights are 1.5 to 12 times too large, as a wrong scale in a converted checkpoint makes them."""
    other = copy.deepcopy(network)
    layers = [module for module in other.modules() if isinstance(module, nn.Conv2d)]
    layer = layers[int(rng.integers(len(layers)))]
    with torch.no_grad():
        layer.weight *= math.exp(rng.uniform(math.log(1.5), math.log(12)))
    return other


def attacked(network: nn.Module, pair: Pair, rng: np.random.Generator) -> Pair:
    """The image that is worst for a network within 1 to 4 codes of 255: projected gradients, 6 steps."""
    bound = float(rng.choice([1, 2, 4])) / 255
    image, sharp = to_tensor(pair[0]), to_tensor(pair[1])
    change = torch.zeros_like(image)
    for _ in range(6):
        change.requires_grad_()
        error = (network(image + change) - sharp).square().mean()
        (slope,) = torch.autograd.grad(error, change)
        change = (change.detach() + 0.4 * bound * slope.sign()).clamp(-bound, bound)
        change = (image + change).clamp(0, 1) - image
    return to_image((image + change)[0].permute(1, 2, 0).numpy()), pair[1]


def mirrored(pair: Pair, size: int) -> Pair:
    """An image continued by reflection to a larger one."""
    grow = [size - side for side in pair[0].shape[:2]]
    blurred, sharp = (cv2.copyMakeBorder(image, 0, grow[0], 0, grow[1], cv2.BORDER_REFLECT) for image in pair)
    return blurred, sharp


FIT_OTHER = {"worlds": "gaussian", "gaussian": "motion", "line": "gaussian", "motion": "line", "rushed": "motion"}
DEGRADED: dict[str, dict[str, Callable[[Pair, np.random.Generator], Pair]]] = {
    "fit": {"noise": noisy, "tone": toned},
    "test": {"JPEG": compressed, "dark": dark, "hot pixels": hot, "haze": hazy, "local blur": local,
             "enlarged": enlarged},
}  # fmt: skip
BROKEN: dict[str, dict[str, Callable[[nn.Module, np.random.Generator], nn.Module]]] = {
    "fit": {"disturbed weights": disturbed, "missing weights": missing},
    "test": {"quantised weights": quantised, "stuck layer": stuck},
}


IDEAL = "ideal"


def ideal(side: str, number: int, image: ImageArray) -> Iterator[Case]:
    """What better networks than ours would give: 40 to 100% of the way to the sharp image, and a little noise."""
    rng = np.random.default_rng((2, side == "test", number))
    kinds = ("gaussian", "line", "motion") if side == "fit" else ("disc", "lines", "long", "local")
    for kind in kinds:
        if kind == "long":
            pair = long_blur(number)
        elif kind == "local":
            pair = local(blurred_by("disc", image, rng), rng)
        else:
            pair = blurred_by(kind, image, rng)
        blurred, sharp = (to_tensor(one) for one in pair)
        noise = 0.01 * torch.randn(sharp.shape, generator=torch.Generator().manual_seed(int(rng.integers(2**31))))
        output = blurred + rng.uniform(0.4, 1) * (sharp - blurred) + rng.random() * noise
        yield Case(side, IDEAL, kind, number, *pair, output, None)


@torch.no_grad()
def cases(side: str, folder: Path, thin: int = 1) -> Iterator[Case]:
    """All cases of a side, the same ones each time; `thin`: only every so many images."""
    networks = {name: trained(name, folder) for name, training in TRAININGS.items() if training.side == side}
    if side == "test":
        networks["bundled"] = load_network("bundled")
    images = fit_images() if side == "fit" else test_images()
    for number, image in list(enumerate(images))[::thin]:
        yield from ideal(side, number, image)
    for order, (name, network) in enumerate(networks.items()):
        blur = TRAININGS[name].blur if name in TRAININGS else "motion"
        blur = "motion" if blur == "worlds" else blur
        for number, image in list(enumerate(images))[::thin]:
            rng = np.random.default_rng((side == "test", order, number))

            def case(
                condition: str, pair: Pair, run: nn.Module = network, number: int = number, name: str = name
            ) -> Case:
                return Case(side, name, condition, number, *pair, run(to_tensor(pair[0])), run)

            own = blurred_by(blur, image, rng)
            yield (first := case("as trained", own))
            if side == "fit":
                yield case("other blur", blurred_by(FIT_OTHER[name], image, rng))
                yield case("nearly sharp", convolved(image, gaussian(rng.uniform(0.35, 0.7))))
            else:
                yield case("other blur", long_blur(number))
                yield case("twice", (to_image(first.output[0].permute(1, 2, 0).numpy()), image))
            for condition, change in DEGRADED[side].items():
                yield case(condition, change(own, rng))
            for condition, fault in BROKEN[side].items():
                yield case(condition, own, fault(network, rng))
            if number % 8 == 0:
                yield case("large", mirrored(own, 576))
            if number % 5 == 0 and side == "test":
                with torch.enable_grad():
                    worst = attacked(network, own, rng)
                yield case("attack", worst)
