"""samdeblur-eval restore: people's own images."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from samdeblur.cli.support import segmenting
from samdeblur.evaluation import restore as restoring
from samdeblur.evaluation import restore_files
from samdeblur.models import NAFNet, deblur, load_network
from samdeblur.models.inference import memory
from samdeblur.storage import AtomMap, folders
from samdeblur.storage.photos import Photo, encode_photo, read_photo

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    network = NAFNet(4, [1], 1, [1])
    with torch.no_grad():
        network.ending.weight.normal_(std=0.05)
        for name, parameter in network.named_parameters():
            if name.endswith(("beta", "gamma")):
                parameter.normal_(std=0.3)
    torch.save(network.state_dict(), tmp_path / "nafnet.pth")
    return tmp_path / "nafnet.pth"


def scene(seed, height=40, width=56, dtype=np.uint8):
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, np.iinfo(dtype).max + 1, (4, 5, 3)).astype(dtype)
    return cv2.GaussianBlur(cv2.resize(patches, (width, height), interpolation=cv2.INTER_NEAREST), (5, 5), 0)


def pixels(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[..., ::-1]


@pytest.fixture
def holiday(tmp_path):
    """Images of several kinds in folders, under names that people give."""
    folder = tmp_path / "holiday"
    (folder / "day 1/été").mkdir(parents=True)
    for number, name in enumerate(("夜.png", "day 1/IMG.0001.PNG", "day 1/été/a.webp", "day 1/été/a.bmp", "plain.tif")):
        Image.fromarray(scene(number)).save(folder / name, lossless=True)
    return folder


def test_one_image_is_what_the_network_gives_under_its_own_name(samdeblur, checkpoint, holiday, tmp_path):
    done = samdeblur("eval", "restore", checkpoint, holiday / "夜.png", "--out", tmp_path / "o")
    assert (done.code, done.err) == (0, "")
    assert "1 image restored" in done.out
    assert "|" not in done.out
    assert np.array_equal(pixels(tmp_path / "o/夜.png"), deblur(load_network(checkpoint), scene(0)))
    assert folders.kind_of(tmp_path / "o") == folders.RESTORED


def test_folders_are_kept_and_two_of_one_name_are_kept_apart(samdeblur, checkpoint, holiday, tmp_path):
    assert samdeblur("eval", "restore", checkpoint, holiday, "--out", tmp_path / "o").code == 0
    network = load_network(checkpoint)
    expected = {"夜": 0, "day 1/IMG.0001": 1, "day 1/été/a": 3, "day 1/été/a-2": 2, "plain": 4}
    found = {str(path.relative_to(tmp_path / "o").with_suffix("")) for path in (tmp_path / "o").rglob("*.png")}
    assert found == set(expected)
    for name, number in expected.items():
        assert np.array_equal(pixels(tmp_path / f"o/{name}.png"), deblur(network, scene(number))), name


def test_images_of_one_name_from_several_places_and_calls_are_kept_apart(samdeblur, checkpoint, tmp_path):
    for number, place in enumerate(("x/a", "y/a", "z")):
        (tmp_path / place).mkdir(parents=True)
        Image.fromarray(scene(number)).save(tmp_path / place / "p.png")
    network = load_network(checkpoint)
    command = ("eval", "restore", checkpoint)
    assert samdeblur(*command, tmp_path / "x/a", tmp_path / "y/a", "--out", tmp_path / "o").code == 0
    for name, number in (("a/p", 0), ("a/p-2", 1)):
        assert np.array_equal(pixels(tmp_path / f"o/{name}.png"), deblur(network, scene(number)))
    for number, place in enumerate(("x/a", "y/a", "z")):
        assert samdeblur(*command, tmp_path / place / "p.png", "--out", tmp_path / "one").code == 0
        name = "p.png" if not number else f"p-{number + 1}.png"
        assert np.array_equal(pixels(tmp_path / "one" / name), deblur(network, scene(number)))


@pytest.mark.parametrize("form", ["png", "jpg", "webp"])
def test_orientation_profile_and_exif(samdeblur, checkpoint, tmp_path, form):
    exif = Image.Exif()
    exif[274], exif[271] = 6, "a camera"
    Image.fromarray(scene(1)).save(tmp_path / "p.jpg", quality=100, icc_profile=SRGB, exif=exif.tobytes())
    options = ("--format", form, "--out", tmp_path / "o")
    assert samdeblur("eval", "restore", checkpoint, tmp_path / "p.jpg", *options).code == 0
    with Image.open(tmp_path / "p.jpg") as given:
        upright = np.array(given.transpose(Image.Transpose.ROTATE_270))
    with Image.open(tmp_path / f"o/p.{form}") as result:
        assert result.size == (40, 56)
        assert result.info["icc_profile"] == SRGB
        assert (result.getexif().get(274, 1), result.getexif()[271]) == (1, "a camera")
        expected = deblur(load_network(checkpoint), upright)
        assert np.abs(np.array(result).astype(int) - expected).mean() <= {"png": 0, "jpg": 4, "webp": 12}[form]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_images_of_16_bits_are_turned_as_those_of_8_are(tmp_path, orientation, suffix):
    """By Pillow's own way of turning, on pixels that both hold."""
    small = scene(3, 20, 30)
    eight = io.BytesIO()
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(small).save(eight, "PNG", exif=exif.tobytes())
    (tmp_path / "eight.png").write_bytes(eight.getvalue())
    deep = small.astype(np.uint16) * 257
    if suffix == ".png":
        photo = Photo(deep, exif=exif.tobytes().removeprefix(b"Exif\0\0"))
        (tmp_path / "deep.png").write_bytes(encode_photo(photo, "png"))
    else:
        assert cv2.imwrite(str(tmp_path / "deep.tif"), deep[..., ::-1])
        if orientation > 1:
            pytest.skip("OpenCV writes no orientation into TIFF")
    found = read_photo(tmp_path / f"deep{suffix}")
    assert found.pixels.dtype == np.uint16
    assert np.array_equal(found.pixels, read_photo(tmp_path / "eight.png").pixels.astype(np.uint16) * 257)


def test_16_bits_stay_where_png_holds_them_and_it_is_said(samdeblur, checkpoint, tmp_path):
    deep = scene(5, dtype=np.uint16)
    assert cv2.imwrite(str(tmp_path / "deep.png"), deep[..., ::-1])
    assert cv2.imwrite(str(tmp_path / "grey.png"), deep[..., 0])
    command = ("eval", "restore", checkpoint, tmp_path / "deep.png", tmp_path / "grey.png")
    done = samdeblur(*command, "--out", tmp_path / "o")
    assert (done.code, done.err.count("16 bits per channel, in and out")) == (0, 2)
    with torch.inference_mode():
        tensor = torch.from_numpy(deep.astype(np.float32) / 65535).permute(2, 0, 1)[None]
        expected = (load_network(checkpoint)(tensor)[0].clamp(0, 1) * 65535).round().permute(1, 2, 0).numpy()
    result = pixels(tmp_path / "o/deep.png")
    assert result.dtype == np.uint16
    assert np.abs(result - expected).max() <= 1
    assert len(np.unique(result)) > 256
    jpeg = samdeblur(*command[:4], "--format", "jpg", "--out", tmp_path / "jpg")
    assert "16 bits per channel, written with 8: jpg holds no more" in jpeg.err
    half = samdeblur(*command[:4], "--precision", "bfloat16", "--out", tmp_path / "half")
    assert "written with 8: bfloat16 gives no more" in half.err
    assert pixels(tmp_path / "half/deep.png").dtype == np.uint8


def test_a_grey_profile_does_not_go_onto_a_result_in_colour(samdeblur, checkpoint, tmp_path):
    grey = bytearray(SRGB)
    grey[16:20] = b"GRAY"
    Image.fromarray(scene(1)[..., 0]).save(tmp_path / "p.png", icc_profile=bytes(grey))
    assert samdeblur("eval", "restore", checkpoint, tmp_path / "p.png", "--out", tmp_path / "o").code == 0
    with Image.open(tmp_path / "o/p.png") as result:
        assert "icc_profile" not in result.info


def test_names_too_long_for_the_file_system_are_shortened_with_a_note(samdeblur, checkpoint, tmp_path):
    folder = tmp_path / "long"
    folder.mkdir()
    names = ["n" * 251, "n" * 250 + "m", "é" * 125, "夜" * 83]
    for name in names:
        Image.fromarray(scene(len(name))).save(folder / f"{name}.png")
    done = samdeblur("eval", "restore", checkpoint, folder, "--format", "webp", "--compare", "--out", tmp_path / "o")
    assert done.code == 0, done.err
    assert done.err.count("its name is too long; the result is called") == 4
    assert len([path for path in (tmp_path / "o").iterdir() if path.suffix == ".webp"]) == 4


def test_what_cannot_be_restored_is_named_and_the_rest_is_restored(samdeblur, checkpoint, holiday, tmp_path):
    (holiday / "broken.jpg").write_bytes(b"\xff\xd8\xffno more")
    (holiday / "raw.cr2").write_bytes(b"raw")
    (holiday / ".hidden.png").write_bytes(b"")
    Image.new("RGBA", (30, 30), (1, 2, 3, 90)).save(holiday / "glass.png")
    Image.fromarray(scene(1, 1, 1)).save(holiday / "dot.png")
    done = samdeblur("eval", "restore", checkpoint, holiday, "--out", tmp_path / "o")
    assert done.code == 3
    for name in ("broken.jpg", "raw.cr2", "glass.png"):
        assert f"{holiday / name}: left out: " in done.err
    assert "hidden" not in done.err
    assert "3 could not be restored" in done.err
    assert pixels(tmp_path / "o/dot.png").shape == (1, 1, 3)
    alone = samdeblur("eval", "restore", checkpoint, holiday / "broken.jpg", "--out", tmp_path / "alone")
    assert alone.code == 1


def test_a_network_gets_the_masks_it_was_trained_with(samdeblur, store, tiny, pairs, tmp_path):
    assert samdeblur("train", store, *tiny, "--method", "map", "--out", tmp_path / "run").code == 0
    results = {}
    for name, options in (("right", ("--segmenter", "superpixels")), ("other", ())):
        out = tmp_path / name
        done = samdeblur("eval", "restore", tmp_path / "run", pairs / "blur", *options, "--out", out)
        assert done.code == 0, done.err
        assert ("--segmenter, --sam and --refine find others" in done.err) == (name == "other")
        results[name] = [pixels(path) for path in sorted(out.glob("*.png"))]
    evaluated = samdeblur("eval", "run", tmp_path / "run", store, "--save-images", "--out", tmp_path / "o")
    assert evaluated.code == 0, evaluated.err
    stored = [pixels(path) for path in sorted((tmp_path / "o/restored").rglob("*.png"))]
    assert len(stored) == 5
    assert all(np.array_equal(*both) for both in zip(results["right"], stored, strict=True))


def count(monkeypatch, target, name):
    calls, real = [], getattr(target, name)

    def counted(*arguments, **options):
        calls.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(target, name, counted)
    return calls


def test_every_stage_runs_once_for_each_image_and_not_again(samdeblur, store, tiny, holiday, tmp_path, monkeypatch):
    assert samdeblur("train", store, *tiny, "--method", "map", "--out", tmp_path / "run").code == 0
    segmented = []

    def segment(self, blurred):
        segmented.append(blurred.shape)
        return AtomMap.from_masks(blurred[None, ..., 0] > 99), {}

    monkeypatch.setattr(segmenting.Segmenter, "__call__", segment)
    network = count(monkeypatch, restoring, "restore")
    read = count(monkeypatch, restore_files, "read_photo")
    command = ("eval", "restore", tmp_path / "run", holiday, "--out", tmp_path / "o")
    done = samdeblur(*command)
    assert done.code == 0, done.err
    assert (len(segmented), len(network), len(read)) == (5, 5, 5)
    assert "the network was trained with masks of superpixels" in done.err
    assert "step 2 of 2" not in done.err  # of a finished run nothing is to be said
    again = samdeblur(*command)
    assert "5 images restored, 5 of them there before" in again.out
    assert (len(segmented), len(network), len(read)) == (5, 5, 5)
    before = {path: path.read_bytes() for path in (tmp_path / "o").rglob("*.png")}
    (tmp_path / "o/夜.png").unlink()
    Image.fromarray(scene(9)).save(holiday / "plain.tif")
    assert samdeblur(*command).code == 0
    assert (len(segmented), len(network), len(read)) == (7, 7, 7)
    after = {path: path.read_bytes() for path in (tmp_path / "o").rglob("*.png")}
    assert {path.name for path in before if before[path] != after[path]} == {"plain.png"}
    other = samdeblur(*command, "--tile", "32", "--overlap", "8")  # another way: all of them, in their places
    assert other.code == 0
    assert set((tmp_path / "o").rglob("*.png")) == set(before)
    assert len(read) == 12


def test_large_images_go_in_tiles_where_memory_asks_for_it(samdeblur, checkpoint, tmp_path, monkeypatch):
    wide = scene(1, 48, 700)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    command = ("eval", "restore", checkpoint, tmp_path / "wide.png")
    assert "tiles" not in samdeblur(*command, "--out", tmp_path / "whole").err
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1 << 20)
    tiled = samdeblur(*command, "--out", tmp_path / "tiled")
    assert "700x48 pixels, restored in tiles of 512 for lack of memory" in tiled.err
    expected = deblur(load_network(checkpoint), wide, tile=512)
    assert np.array_equal(pixels(tmp_path / "tiled/wide.png"), expected)


def test_the_memory_of_a_pass_is_told_from_a_small_one(checkpoint):
    """Half of it is what the largest layer takes and gives: here 8 channels in and out, as float32."""
    assert memory.bytes_per_pixel(load_network(checkpoint)) == 2 * (8 + 8) * 4
    assert memory.free_bytes(torch.device("cpu")) > 1 << 20


def test_a_page_to_compare_by(samdeblur, checkpoint, holiday, tmp_path):
    (holiday / "<b>&.png").write_bytes((holiday / "夜.png").read_bytes())
    done = samdeblur("eval", "restore", checkpoint, holiday, "--compare", "--out", tmp_path / "o")
    assert done.code == 0
    page = (tmp_path / "o/compare.html").read_text(encoding="utf-8")
    assert page.count('type="range"') == 6
    assert "<b>" not in page
    from html.parser import HTMLParser
    from urllib.parse import unquote

    class Sources(HTMLParser):
        found: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag, attributes):
            if tag == "img":
                self.found.append(dict(attributes)["src"])

    Sources().feed(page)
    assert len(Sources.found) == 12
    for address in Sources.found:
        assert (tmp_path / "o" / unquote(address)).is_file(), address
    assert np.abs(pixels(tmp_path / "o/compare.files/夜.png.jpg").astype(int) - scene(0)).mean() < 4


def test_results_are_not_restored_again(samdeblur, checkpoint, holiday, tmp_path):
    command = ("eval", "restore", checkpoint)
    for _ in range(2):
        assert samdeblur(*command, holiday, "--out", holiday / "sharper").code == 0
    found = list((holiday / "sharper").rglob("*.png"))
    assert len(found) == 5
    swapped = samdeblur(*command, holiday / "sharper", "--out", tmp_path / "o")
    assert (swapped.code, "holds restored images" in swapped.error) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere.png",), "no such image or folder"),
        (("empty",), "no images there"),
        (("holiday", "--out", "holiday"), "name a new folder"),
        (("holiday", "--tile", "33"), "--tile and --overlap"),
        (("holiday", "--train-size", "64"), "--train-size is for --tlc"),
        (("holiday", "--weights", "worst"), "not one of best, last, initial, step-N"),
        (("holiday", "--format", "gif"), "gif"),
    ],
)
def test_what_is_refused(samdeblur, checkpoint, holiday, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    out = () if "--out" in arguments else ("--out", "o")
    refused = samdeblur("eval", "restore", checkpoint, *arguments, *out)
    assert (refused.code, words in refused.error) == (2, True), refused.err
    assert not Path("o").exists()


def test_an_interrupted_restoration_goes_on(samdeblur, checkpoint, holiday, tmp_path, monkeypatch):
    command = ("eval", "restore", checkpoint, holiday)
    assert samdeblur(*command, "--out", tmp_path / "whole").code == 0
    write, written = restore_files.write_durably, []

    def stopped(path, data):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write(path, data)

    monkeypatch.setattr(restore_files, "write_durably", stopped)
    assert samdeblur(*command, "--out", tmp_path / "o").code == 130
    monkeypatch.setattr(restore_files, "write_durably", write)
    done = samdeblur(*command, "--out", tmp_path / "o")
    assert "5 images restored, 2 of them there before" in done.out
    for path in (tmp_path / "whole").rglob("*.png"):
        assert (tmp_path / "o" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()
    shutil.rmtree(tmp_path / "o")


@pytest.mark.filterwarnings("default::samdeblur.models.checkpoints.finding.SeveralNetworks")
def test_weights_are_chosen_from_a_file_with_several_and_each_choice_is_another_result(
    samdeblur, checkpoint, holiday, tmp_path
):
    state = torch.load(checkpoint, weights_only=True)
    both = {"params": state, "params_ema": {name: tensor * 0.5 for name, tensor in state.items()}}
    torch.save(both, tmp_path / "both.pth")
    image, out = holiday / "plain.tif", tmp_path / "o"
    done = samdeblur("eval", "restore", tmp_path / "both.pth", image, "--out", out)
    note = f"note: {tmp_path}/both.pth: holds weights and their moving average; takes params_ema"
    assert (done.code, note in done.err) == (0, True)
    average = pixels(out / "plain.png")
    done = samdeblur("eval", "restore", f"{tmp_path}/both.pth#params", image, "--out", tmp_path / "p")
    assert (done.code, "note" in done.err) == (0, False)
    assert (pixels(tmp_path / "p/plain.png") == deblur(load_network(checkpoint), read_photo(image).pixels)).all()
    assert (pixels(tmp_path / "p/plain.png") != average).any()
    done = samdeblur("eval", "restore", f"{tmp_path}/both.pth#parms", image, "--out", tmp_path / "q")
    assert (done.code, "did you mean params?" in done.err) == (2, True)


def test_a_store_knows_which_part_of_a_file_it_was_made_with(samdeblur, checkpoint, pairs, tmp_path):
    state = torch.load(checkpoint, weights_only=True)
    torch.save({"params": state, "params_ema": {k: v * 0.5 for k, v in state.items()}}, tmp_path / "both.pth")

    def run(part):
        weights = ("--predeblur", f"{tmp_path}/both.pth{part}", "--segmenter", "superpixels")
        return samdeblur("prep", "run", pairs, tmp_path / "s.zarr", "--split", "train", *weights)

    refused, done, other = (run(part) for part in ("#nope", "#params", "#params_ema"))
    assert (refused.code, "no part 'nope'" in refused.err, done.code) == (2, True, 0)
    assert (other.code, "predeblur" in other.err) == (2, True), "a recipe with another part is another recipe"
