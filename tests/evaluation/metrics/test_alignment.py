from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import skimage.data
from skimage.metrics import structural_similarity

from samdeblur.evaluation.metrics import alignment
from samdeblur.evaluation.metrics.alignment import Warp, align, aligned_scores, find_warp
from samdeblur.evaluation.metrics.psnr_ssim import psnr, ssim

# From pixels of the sharp image to those of the result.
HOMOGRAPHIES = {
    "shift": np.array([[1, 0, 2.5], [0, 1, -1.5], [0, 0, 1]]),
    "turn": np.array([[0.9999, -0.012, 3.0], [0.012, 0.9999, -2.0], [0, 0, 1]]),
    "perspective": np.array([[1.006, 0.003, -3.2], [-0.002, 0.996, 2.1], [8e-6, -1.2e-5, 1]]),
}
TOP, LEFT, HEIGHT, WIDTH = 80, 120, 240, 320
WINDOW = np.s_[TOP : TOP + HEIGHT, LEFT : LEFT + WIDTH]


@pytest.fixture(scope="module")
def sharp():
    return np.ascontiguousarray(skimage.data.coffee()[WINDOW])


def seen(homography=None, gain=1.0, blur=1):
    """The same window as another camera sees it, shaken; what comes into view is there."""
    scene = cv2.filter2D(skimage.data.coffee().astype(np.float32), -1, np.eye(blur) / blur)
    if homography is not None:
        to_window = np.array([[1, 0, LEFT], [0, 1, TOP], [0, 0, 1]], float)
        there = to_window @ homography @ np.linalg.inv(to_window)
        scene = cv2.warpPerspective(scene, there, scene.shape[1::-1], flags=cv2.INTER_CUBIC)
    return np.clip(np.round(gain * scene[WINDOW]), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("gain", [0.8, 1.1])
@pytest.mark.parametrize("name", HOMOGRAPHIES)
def test_a_known_homography_and_gain_are_recovered(sharp, name, gain):
    warp = find_warp(seen(HOMOGRAPHIES[name], gain), sharp)
    corners = np.array([[[0, 0], [WIDTH - 1, 0], [0, HEIGHT - 1], [WIDTH - 1, HEIGHT - 1]]], float)
    found = cv2.perspectiveTransform(corners, warp.homography.astype(float))
    assert np.abs(found - cv2.perspectiveTransform(corners, HOMOGRAPHIES[name])).max() < 0.25
    assert warp.gain == pytest.approx(1 / gain, rel=0.03)  # of images out of place it is a little low


@pytest.mark.parametrize("gain", [0.7, 0.9, 1.05])
def test_a_gain_alone_is_recovered(sharp, gain):
    dim = sharp // 2 + 30  # so that nothing is clipped
    result = np.round(gain * dim).astype(np.uint8)
    assert find_warp(result, dim).gain == pytest.approx(1 / gain, rel=1e-3)
    scores = aligned_scores(result, dim)
    assert scores.found
    assert scores.psnr > 50


@pytest.mark.parametrize("name", HOMOGRAPHIES)
def test_alignment_wins_what_position_and_gain_cost(sharp, name):
    result = seen(HOMOGRAPHIES[name], 0.8)
    scores = aligned_scores(result, sharp)
    assert scores.found
    assert scores.psnr > psnr(result, sharp) + 12
    assert 1 - scores.ssim_wang < (1 - ssim(result, sharp)) / 5
    assert 1 - scores.ssim_nafnet < (1 - ssim(result, sharp, "nafnet")) / 5


def test_what_blur_costs_remains(sharp):
    blurred = seen(blur=9)
    scores = aligned_scores(seen(HOMOGRAPHIES["shift"], 0.9, blur=9), sharp)
    assert scores.psnr == pytest.approx(psnr(blurred, sharp), abs=0.3)
    assert scores.ssim_wang == pytest.approx(ssim(blurred, sharp), abs=0.01)


def test_a_result_in_place_keeps_its_scores(sharp):
    noise = np.random.default_rng(0).normal(0, 6, sharp.shape)
    result = np.clip(sharp + noise, 0, 255).astype(np.uint8)
    scores = aligned_scores(result, sharp)
    assert scores.found
    assert scores.psnr == pytest.approx(psnr(result, sharp), abs=0.1)
    assert scores.ssim_wang == pytest.approx(ssim(result, sharp), abs=0.005)
    assert scores.ssim_nafnet == pytest.approx(ssim(result, sharp, "nafnet"), abs=0.005)


def test_an_equal_result_is_perfect(sharp):
    aligned, valid, found = align(sharp, sharp)
    assert found
    assert valid.mean() > 0.98
    assert np.abs(aligned - sharp)[valid].max() < 0.1
    scores = aligned_scores(sharp, sharp)
    assert scores.psnr > 60
    assert (scores.ssim_wang, scores.ssim_nafnet) == (pytest.approx(1, abs=1e-4), pytest.approx(1, abs=1e-4))


def test_the_result_comes_to_the_sharp_image_and_what_it_does_not_show_is_not_valid(sharp):
    result = seen(np.array([[1, 0, 12], [0, 1, 0], [0, 0, 1]], float))  # the scene 12 pixels to the right
    assert np.array_equal(result[:, 12:], sharp[:, :-12])
    aligned, valid, found = align(result, sharp)
    assert found
    assert (aligned.dtype, aligned.shape, valid.dtype, valid.shape) == (np.float32, sharp.shape, bool, sharp.shape[:2])
    assert valid[:, :-13].all()
    assert not valid[:, -11:].any()
    back = aligned / find_warp(result, sharp).gain
    assert np.abs(back - sharp)[valid].mean() < 0.5


def test_scores_are_those_of_valid_pixels_alone(sharp):
    result = seen(HOMOGRAPHIES["perspective"], 0.9, blur=5)
    aligned, valid, _ = align(result, sharp)
    scores = aligned_scores(result, sharp)
    assert 0.9 < valid.mean() < 1
    error = np.mean((aligned[valid].astype(float) - sharp[valid]) ** 2)
    assert scores.psnr == pytest.approx(10 * math.log10(255**2 / error), rel=1e-12)
    black = [np.where(valid[..., None], image, 0).astype(float) for image in (aligned, sharp)]
    _, similarity = structural_similarity(
        *black,
        channel_axis=2,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    assert scores.ssim_wang == pytest.approx(similarity[5:-5, 5:-5][valid[5:-5, 5:-5]].mean(), rel=1e-10)


@pytest.mark.parametrize(
    "spoil", [np.zeros_like, lambda x: np.full_like(x, 90), lambda x: 255 - x], ids=["black", "grey", "negative"]
)
def test_a_result_that_ecc_cannot_place_is_scored_as_it_is(sharp, spoil):
    result = spoil(sharp)
    assert find_warp(result, sharp) is None
    aligned, valid, found = align(result, sharp)
    assert not found
    assert valid.all()
    assert np.array_equal(aligned, result)
    scores = aligned_scores(result, sharp)
    assert not scores.found
    assert scores.psnr == pytest.approx(psnr(result, sharp), rel=1e-12)
    assert scores.ssim_wang == pytest.approx(ssim(result, sharp), rel=1e-12)
    assert scores.ssim_nafnet == pytest.approx(ssim(result, sharp, "nafnet"), rel=1e-12)


def test_a_homography_that_leaves_too_little_is_not_used(sharp, monkeypatch):
    away = np.array([[1, 0, 200], [0, 1, 0], [0, 0, 1]], np.float32)
    monkeypatch.setattr(alignment, "find_warp", lambda result, sharp: Warp(1.0, away))
    aligned, valid, found = align(sharp, sharp)
    assert not found
    assert valid.all()
    assert np.array_equal(aligned, sharp)


def test_images_of_other_shapes_and_types_are_refused(sharp):
    for result in (sharp[:-1], sharp[..., 0], sharp.astype(np.float32)):
        with pytest.raises(ValueError, match="images must be"):
            align(result, sharp)
