"""Writes the lists of this folder from the description in README.md; knows nothing of the package."""

from pathlib import Path

Shape = tuple[int, ...]


def conv(name: str, out: int, inp: int, size: int = 1, bias: bool = True) -> dict[str, Shape]:
    return {f"{name}.weight": (out, inp, size, size), **({f"{name}.bias": (out,)} if bias else {})}


def block(name: str, c: int) -> dict[str, Shape]:
    return {
        f"{name}.beta": (1, c, 1, 1),
        f"{name}.gamma": (1, c, 1, 1),
        **conv(f"{name}.conv1", 2 * c, c),
        **conv(f"{name}.conv2", 2 * c, 1, 3),  # depthwise
        **conv(f"{name}.conv3", c, c),
        **conv(f"{name}.sca.1", c, c),
        **conv(f"{name}.conv4", 2 * c, c),
        **conv(f"{name}.conv5", c, c),
        **{f"{name}.{norm}.{part}": (c,) for norm in ("norm1", "norm2") for part in ("weight", "bias")},
    }


def blocks(name: str, c: int, count: int) -> dict[str, Shape]:
    if not count:
        return {}
    return block(f"{name}.0" if count == 1 else f"{name}.{{0..{count - 1}}}", c)


def network(width: int, enc: list[int], middle: int, dec: list[int], prior: int = 0) -> dict[str, Shape]:
    """Names and shapes of NAFNet with `prior` more input channels."""
    shapes = conv("intro", width, 3 + prior, 3) | conv("ending", 3, width, 3)
    c = width
    for level, count in enumerate(enc):
        shapes |= blocks(f"encoders.{level}", c, count) | conv(f"downs.{level}", 2 * c, c, 2)
        c *= 2
    shapes |= blocks("middle_blks", c, middle)
    for level, count in enumerate(dec):
        shapes |= conv(f"ups.{level}.0", 2 * c, c, bias=False)
        c //= 2
        shapes |= blocks(f"decoders.{level}", c, count)
    return shapes


def segmentation(channels: int) -> dict[str, Shape]:
    """What MAP adds: the encoder that is pooled."""
    return conv("pre_seg", channels, 3, 3) | conv("pre_seg_in", channels, channels)


def main() -> None:
    published, small = ([1, 1, 1, 28], 1, [1, 1, 1, 1]), ([1, 3], 1, [2, 1])
    for size, width, counts in (("width32", 32, published), ("width64", 64, published), ("small", 4, small)):
        lists = {"nafnet": network(width, *counts)}
        if size != "width64":
            lists["cat"] = network(width, *counts, prior=1)
            lists["map"] = segmentation(2) | network(width, *counts, prior=2)
        for name, shapes in lists.items():
            lines = [f"{key} {' '.join(map(str, shape))}" for key, shape in shapes.items()]
            (Path(__file__).parent / f"{name}-{size}.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
