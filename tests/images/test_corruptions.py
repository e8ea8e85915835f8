"""Corruptions: strengths against the table, the same bytes again, distortion that grows with severity."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from lossmap.images import corruptions, operations
from lossmap.images.corruptions import EXTRA, STRENGTHS, corrupt, known

TABLE = Path(__file__).parents[3] / "shared" / "reference" / "corruptions.json"
NAMES = sorted(STRENGTHS)
# Their strengths do not grow from one severity to the next in every number: glass blur trades smoothing against
# passes, frost and saturate change sign or share, elastic transform trades amplitude against jitter.
NOT_ORDERED = {"glass_blur", "frost", "saturate", "elastic_transform"}


def scenes(count, size=32, channels=3, seed=0):
    """Images with the spectrum of photographs, uint8."""
    rng = np.random.default_rng(seed)
    f = np.fft.fftfreq(size)
    radius = np.maximum(np.hypot(f[:, None], f), 1 / size)[None, :, :, None]
    noise = rng.standard_normal((count, size, size, channels)) + 1.5 * rng.standard_normal((count, size, size, 1))
    field = np.fft.ifft2(np.fft.fft2(noise, axes=(1, 2)) / radius**1.3, axes=(1, 2)).real
    field -= field.min((1, 2, 3), keepdims=True)
    return np.rint(255 * field / field.max((1, 2, 3), keepdims=True)).astype(np.uint8)


@pytest.fixture(scope="module")
def images():
    return scenes(60)


def distance(a, b):
    return float(np.sqrt(np.mean((a.astype(float) - b.astype(float)) ** 2)))


def test_the_strengths_are_those_of_the_benchmark():
    if not TABLE.exists():
        pytest.skip("the table of strengths lies outside this checkout")
    table = {k: v for k, v in json.loads(TABLE.read_text()).items() if not k.startswith("_")}
    assert {k: [list(map(float, s)) for s in v] for k, v in STRENGTHS.items()} == {
        k: [list(map(float, s)) for s in v["severity"]] for k, v in table.items()
    }
    assert set(EXTRA) == {k for k, v in table.items() if v.get("extra")}


def test_there_are_fifteen_and_three_extra():
    assert len(STRENGTHS) == 18 and len(EXTRA) == 3 and all(len(s) == 5 for s in STRENGTHS.values())
    assert set(corruptions._METHODS) == set(STRENGTHS)


@pytest.mark.parametrize("name", NAMES)
def test_type_and_shape_are_kept_and_the_images_given_are_left_alone(name):
    for images in (
        scenes(3),
        scenes(3).astype(np.float32) / np.float32(255),
        scenes(2, size=8, channels=1).astype(np.float64) / 255,
        scenes(2, size=8, channels=1),
    ):
        before = images.copy()
        for level in (1, 5):
            out = corrupt(images, name, level)
            assert out.dtype == images.dtype and out.shape == images.shape
            assert np.isfinite(out).all() and out.min() >= 0 and out.max() <= (255 if out.dtype == np.uint8 else 1)
        assert np.array_equal(images, before)


@pytest.mark.parametrize("name", sorted(set(NAMES) - NOT_ORDERED))
def test_distortion_does_not_fall_as_severity_rises(name, images):
    steps = [distance(corrupt(images, name, level), images) for level in range(1, 6)]
    assert steps[0] > 0 and all(b >= a for a, b in pairwise(steps)), steps


@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_equal_between_processes(name):
    code = (
        "import hashlib, numpy as np\nfrom lossmap.images.corruptions import corrupt\n"
        "x = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)\n"
        f"print(hashlib.sha256(corrupt(x, {name!r}, 3, seed=2)).hexdigest())"
    )
    if name not in ("snow", "glass_blur"):  # two stand for the others, which are called twice in one process
        x = scenes(4)
        assert corrupt(x, name, 3, seed=2).tobytes() == corrupt(x, name, 3, seed=2).tobytes()
        return
    told = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(told) == 1


CHANCE = [name for name in NAMES if name.endswith("_noise")]
CHANCE += ["glass_blur", "motion_blur", "snow", "frost", "fog", "elastic_transform"]


@pytest.mark.parametrize("name", CHANCE)
def test_seed_stream_and_number_of_the_image_make_the_chance(name):
    x = np.repeat(scenes(1), 2, axis=0)
    out = corrupt(x, name, 3)
    assert not np.array_equal(out[0], out[1])
    assert not np.array_equal(out, corrupt(x, name, 3, seed=1))
    assert not np.array_equal(out, corrupt(x, name, 3, stream="test"))
    assert np.array_equal(out[1], corrupt(x[:1], name, 3, indices=[1])[0])


@settings(max_examples=20, deadline=None)
@given(name=st.sampled_from(NAMES), level=st.integers(1, 5), cut=st.integers(1, 5), order=st.permutations(range(6)))
def test_an_image_is_corrupted_alone_as_among_others(name, level, cut, order):
    x = scenes(6, size=16)
    whole = corrupt(x, name, level)
    rows = np.array(order)
    parts = [corrupt(x[part], name, level, indices=part) for part in (rows[:cut], rows[cut:])]
    assert np.array_equal(np.concatenate(parts), whole[rows])


def test_the_chunks_of_a_large_set_agree_with_a_small_one(monkeypatch):
    x = scenes(5, size=8)
    whole = corrupt(x, "snow", 2)
    monkeypatch.setattr(corruptions, "_CHUNK", 2)
    assert np.array_equal(corrupt(x, "snow", 2), whole)


def grey(value, shape=(400, 16, 16, 1)):
    return np.full(shape, value, np.float32)


@pytest.mark.parametrize(("name", "level", "value", "expected"), [
    ("gaussian_noise", 5, 0.5, 0.1),
    ("speckle_noise", 5, 0.5, 0.1),
    ("shot_noise", 5, 0.5, (0.5 / 50) ** 0.5),
    ("impulse_noise", 5, 0.5, (0.07 * 0.25) ** 0.5),
])  # fmt: skip
def test_noise_has_the_deviation_of_its_strength(name, level, value, expected):
    out = corrupt(grey(value), name, level)
    assert abs(float(out.mean()) - value) < 0.002
    assert abs(float(out.std()) - expected) < 0.02 * expected


@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur", "motion_blur", "zoom_blur", "pixelate", "glass_blur",
                                  "elastic_transform", "contrast", "jpeg_compression"])  # fmt: skip
def test_an_even_image_stays_as_it_is(name):
    for level in range(1, 6):
        out = corrupt(grey(0.4, (2, 32, 32, 3)), name, level)
        np.testing.assert_allclose(out, 0.4, atol=3e-6 if name != "jpeg_compression" else 0.01)


def test_contrast_and_brightness_do_what_they_say():
    x = scenes(3).astype(np.float32) / 255
    means = x.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(corrupt(x, "contrast", 3), np.clip((x - means) * 0.4 + means, 0, 1), atol=1e-6)
    dark = 0.5 * x
    raised = corrupt(dark, "brightness", 5)
    np.testing.assert_allclose(raised.max(3), np.clip(dark.max(3) + 0.3, 0, 1), atol=1e-6)
    colour = dark.max(3) > 0.05  # the ratios of the channels, which are hue and saturation, stay
    np.testing.assert_allclose(
        (raised / raised.max(3, keepdims=True))[colour], (dark / dark.max(3, keepdims=True))[colour], atol=1e-5
    )
    assert np.allclose(corrupt(grey(0.0, (1, 8, 8, 3)), "brightness", 1), 0.05)


def test_saturation_is_that_of_the_colour_model():
    import colorsys

    x = scenes(1, size=8).astype(np.float32) / 255
    for level, (factor, added) in enumerate(STRENGTHS["saturate"], start=1):
        out = corrupt(x, "saturate", level)
        for row, column in np.ndindex(8, 8):
            h, s, v = colorsys.rgb_to_hsv(*map(float, x[0, row, column]))
            expected = colorsys.hsv_to_rgb(h, min(1.0, s * factor + added), v)
            np.testing.assert_allclose(out[0, row, column], expected, atol=1e-5)
    one = scenes(2, channels=1)
    assert np.array_equal(corrupt(one, "saturate", 5), one)


def test_gaussian_blur_is_scipys():
    x = scenes(2).astype(np.float32) / 255
    expected = np.stack([[ndimage.gaussian_filter(i[..., c], 0.8, mode="nearest") for c in range(3)] for i in x])
    np.testing.assert_allclose(corrupt(x, "gaussian_blur", 4), expected.transpose(0, 2, 3, 1), atol=1e-6)


def test_zooming_agrees_with_reading_between_pixels():
    x = scenes(1, size=9, channels=1).astype(np.float32) / 255
    places = (np.arange(9) - 4) / 1.25 + 4
    rows, columns = np.meshgrid(places, places, indexing="ij")
    expected = ndimage.map_coordinates(x[0, ..., 0], [rows, columns], order=1)
    np.testing.assert_allclose(operations.zoomed(x, 1.25)[0, ..., 0], expected, atol=1e-6)


def test_reading_between_pixels_is_scipys():
    x = scenes(1, size=9).astype(np.float32) / 255
    rng = np.random.default_rng(0)
    rows, columns = rng.uniform(-8, 16, (2, 1, 9, 9))
    expected = [ndimage.map_coordinates(x[0, ..., c], [rows[0], columns[0]], order=1, mode="reflect") for c in range(3)]
    np.testing.assert_allclose(operations.sampled(x, rows, columns)[0], np.stack(expected, -1), atol=1e-5)


def test_exchanged_pixels_of_glass_are_the_same_pixels():
    x = scenes(1).astype(np.float32) / 255  # at severity 1 the smoothing, sigma .05, does nothing
    out = corrupt(x, "glass_blur", 1)
    assert not np.array_equal(out, x)
    assert np.array_equal(np.sort(out.reshape(-1, 3), 0), np.sort(x.reshape(-1, 3), 0))


def test_smearing_moves_a_point_along_its_line():
    x = np.zeros((1, 15, 15, 1), np.float32)
    x[0, 7, 7] = 1.0
    out = operations.smeared(x, 3, 1.0, np.zeros(1, np.float32))
    assert out[0, :7].sum() == 0 and out[0, 8:].sum() == 0
    assert abs(float(out.sum()) - 1) < 1e-6 and out[0, 7, 7] == out.max()


def test_clouds_fill_the_range_from_0_to_1():
    draw = corruptions._drawing([np.random.default_rng(i) for i in range(3)])
    clouds = operations.plasma_clouds((32, 20), 2.0, draw)
    assert clouds.shape == (3, 32, 20) and clouds.min() >= 0 and clouds.max() <= 1
    rough, smooth = (
        np.abs(
            np.diff(operations.plasma_clouds((32, 32), decay, corruptions._drawing([np.random.default_rng(0)])))
        ).mean()
        for decay in (1.2, 3.0)
    )
    assert rough > 2 * smooth


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: known("gausian_noise", 1), "no corruption is named 'gausian_noise'; nearest: gaussian_noise"),
        (lambda: known("qqq", 1), "no corruption is named 'qqq'; there are gaussian_noise"),
        (lambda: known("fog", 0), "the severity must be 1 to 5; got 0"),
        (
            lambda: corrupt(np.zeros((2, 8, 8)), "fog", 1),
            r"images must have shape \(N, H, W, 1 or 3\); got \(2, 8, 8\)",
        ),
        (lambda: corrupt(np.zeros((2, 3, 8, 8)), "fog", 1), "images must have shape"),
        (lambda: corrupt(np.zeros((2, 8, 8, 1), int), "fog", 1), "images must be uint8 0..255 or floating-point 0..1"),
        (lambda: corrupt(scenes(2), "fog", 1, indices=[1]), "indices must be one for each of 2 images"),
    ],
)
def test_invalid_arguments_give_one_message(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_names_are_read_as_people_write_them():
    assert known(" Gaussian-Noise", "5") == ("gaussian_noise", 5)


def test_the_noise_of_imagenet_c_has_the_published_deviation():
    grey = np.full((4, 64, 64, 1), 0.5)
    for level, sigma in enumerate((0.08, 0.12), start=1):  # stronger ones are cut at 0 and 1
        out = corrupt(grey, "gaussian_noise", level, benchmark="imagenet-c")
        assert np.std(out) == pytest.approx(sigma, rel=0.03)
    photons = corrupt(grey, "shot_noise", 1, benchmark="imagenet-c")
    assert np.std(photons) == pytest.approx(np.sqrt(0.5 / 60), rel=0.03)
    hit = corrupt(grey, "impulse_noise", 5, benchmark="imagenet-c")
    assert np.mean(hit != 0.5) == pytest.approx(0.27, abs=0.01)
    assert np.array_equal(
        corrupt(grey, "gaussian_noise", 2), corrupt(grey, "gaussian_noise", 2, benchmark="cifar-10-c")
    )
