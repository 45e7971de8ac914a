"""Draws, geometry, RandAugment and the agreement of the two image engines.

That RandAugment is the public code's: golden/randaugment, in tests/test_parity.py.
"""

import io
import pathlib

import ml_collections
import numpy as np
import pytest
from PIL import Image

from albef_jax.data.images import randaugment
from albef_jax.data.images.pillow import (
    BrokenImage,
    WHOLE,
    Draw,
    PillowEngine,
    crop_box,
    draw_train,
    load_image,
    reduce_box,
    reduction,
)

GOLDEN = pathlib.Path(__file__).parents[1] / "golden/randaugment"
ARRAYS = dict(np.load(GOLDEN / "arrays.npz"))
CONFIG = ml_collections.ConfigDict(dict(crop_scale=(0.2, 1.0), flip=0.5, randaugment=(2, 7)))
GEOMETRIC = ("ShearX", "ShearY", "Rotate")  # these interpolate; translations are whole pixels


def readers(images):
    """Functions that read images, as engines take them."""
    return [lambda image=image: image for image in images]


def draw_of(*operations, flip=False, area=1.0) -> Draw:
    """A draw of one crop of some area in the shape of the image."""
    return Draw(np.full(10, area), np.ones(10), (0.5, 0.5), flip, operations)


def draws(number: int) -> list[Draw]:
    return [draw_train(np.random.default_rng(seed), CONFIG) for seed in range(number)]


@pytest.fixture(scope="module", params=["pillow", "tf"])
def engine(request):
    """Makes an engine of a size."""
    if request.param == "pillow":
        return lambda size: PillowEngine(size)
    pytest.importorskip("tensorflow")
    from albef_jax.data.images.tf import TfEngine

    return lambda size: TfEngine(size, 2)


def augment(engine, operations) -> np.ndarray:
    """The golden image, square because engines make squares, after some operations."""
    square = ARRAYS["image"][:40]
    images, problems = engine(40).load(readers([square]), [draw_of(*operations)])
    assert problems == [None]
    return images[0].astype(int)


@pytest.mark.parametrize("name", randaugment.OPERATIONS)
@pytest.mark.parametrize("sign", [0.1, 0.9])
def test_tf_operation_equals_pillow(name, sign):
    pytest.importorskip("tensorflow")
    from albef_jax.data.images.tf import TfEngine

    operations = [randaugment.operation(name, 7, sign)]
    with_pillow = augment(lambda size: PillowEngine(size), operations)
    with_tf = augment(lambda size: TfEngine(size, 2), operations)
    difference = np.abs(with_pillow - with_tf)
    assert difference.max() <= (2 if name in GEOMETRIC else 0)


def test_skipped_operations_and_distribution():
    rng = np.random.default_rng(0)
    drawn = [randaugment.draw_operations(rng, 2, 7) for _ in range(4000)]
    names = [name for pair in drawn for name, _ in pair]
    assert names.count("Identity") / len(names) == pytest.approx(0.55, abs=0.02)
    for name in randaugment.OPERATIONS[1:]:
        assert names.count(name) / len(names) == pytest.approx(0.05, abs=0.01)
    rotations = [value for pair in drawn for name, value in pair if name == "Rotate"]
    assert np.mean(np.array(rotations) > 0) == pytest.approx(0.5, abs=0.08)


def test_crop_has_the_configured_area_and_ratio_and_stays_inside():
    boxes = [crop_box(draw, 300, 400) for draw in draws(2000)]
    for top, left, height, width in boxes:
        assert 0 <= top <= 300 - height and 0 <= left <= 400 - width
        assert 0.195 <= height * width / 120000 <= 1.0
        assert 0.74 <= width / height <= 1.35
    areas = [height * width / 120000 for _, _, height, width in boxes]
    # A try fits a 4:3 image if area <= 0.75 ratio; the mean over those, by integration.
    assert np.mean(areas) == pytest.approx(0.494, abs=0.015)
    assert min(box.top for box in boxes) == 0 and max(box.top for box in boxes) > 140


@pytest.mark.parametrize("height,width,expected", [(4, 900, (4, 5)), (700, 2, (3, 2))])
def test_crop_of_extreme_shapes_is_central(height, width, expected):
    never_fits = draw_of(area=100.0)
    box = crop_box(never_fits, height, width)
    assert (box.height, box.width) == expected
    assert abs(2 * box.top + box.height - height) <= 1
    assert abs(2 * box.left + box.width - width) <= 1


@pytest.mark.parametrize("height,width", [(90, 300), (300, 90), (120, 110)])
def test_without_crop_the_whole_image_is_shown(engine, photo_jpeg, height, width):
    """In any shape, where a crop scale of (1, 1) would cut a square out of the middle."""
    whole = ml_collections.ConfigDict(dict(crop_scale=(), flip=0.0, randaugment=(0, 0)))
    drawn = draw_train(np.random.default_rng(0), whole)
    assert crop_box(drawn, height, width) == (0, 0, height, width)
    photo = readers([photo_jpeg(height, width)])
    (shown, held_out), problems = zip(*(engine(64).load(photo, [d]) for d in (drawn, WHOLE)))
    assert problems == ([None], [None])
    np.testing.assert_array_equal(shown, held_out)


def test_draw_depends_on_the_generator_only():
    one, again, other = (draw_train(np.random.default_rng(s), CONFIG) for s in (1, 1, 2))
    np.testing.assert_equal(one, again)
    assert not np.array_equal(one.areas, other.areas)


def test_eval_resize_is_the_plain_one():
    image = Image.fromarray(ARRAYS["image"])
    expected = image.resize((24, 24), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(load_image(ARRAYS["image"], WHOLE, 24), np.asarray(expected))


def test_flip_mirrors():
    plain = load_image(ARRAYS["image"][:40], draw_of(), 40)
    np.testing.assert_array_equal(plain, ARRAYS["image"][:40])
    flipped = load_image(ARRAYS["image"][:40], draw_of(flip=True), 40)
    np.testing.assert_array_equal(flipped, plain[:, ::-1])


def test_shrinking_while_decoding_changes_little(photo_jpeg):
    data = photo_jpeg(900, 1203)
    box = crop_box(draw_of(area=0.8), 900, 1203)
    assert reduction(box, 96) == 4 and reduction(box, 500) == 1
    small = reduce_box(box, 4, 900, 1203)
    assert small.left + small.width <= 301 and small.top + small.height <= 225
    shrunk = load_image(data, draw_of(area=0.8), 96).astype(int)
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    plain = load_image(pixels, draw_of(area=0.8), 96)
    assert 0 < np.abs(shrunk - plain).mean() < 1.5


def test_engines_show_the_same_picture(photo_jpeg, odd_files):
    pytest.importorskip("tensorflow")
    from albef_jax.data.images.tf import TfEngine

    files = [photo_jpeg(90, 120), photo_jpeg(333, 257), photo_jpeg(700, 900), ARRAYS["image"]]
    files += odd_files.values()
    images = readers(files * 4)
    for drawn in (draws(len(images)), [WHOLE] * len(images)):
        with_pillow, none = PillowEngine(48).load(images, drawn)
        with_tf, none_tf = TfEngine(48, 2).load(images, drawn)
        assert none == none_tf == [None] * len(images)
        difference = np.abs(with_pillow.astype(int) - with_tf)
        assert difference.mean() < 0.6
        # Equalize may turn one level of difference into several.
        assert difference.mean((1, 2, 3)).max() < 4


def test_odd_images_load(engine, odd_files):
    for drawn in (draws(len(odd_files)), [WHOLE] * len(odd_files)):
        images, problems = engine(16).load(readers(odd_files.values()), drawn)
        assert problems == [None] * len(odd_files)
        assert images.shape == (len(odd_files), 16, 16, 3) and images.dtype == np.uint8


def test_transparency_is_dropped_and_gray_is_gray(odd_files):
    gray = load_image(odd_files["gray.jpg"], WHOLE, 16)
    assert (gray == gray[..., :1]).all()
    colour = load_image(odd_files["palette.png"], WHOLE, 16).astype(int)
    cmyk = load_image(odd_files["cmyk.jpg"], WHOLE, 16).astype(int)
    assert np.abs(colour - cmyk).mean() < 12, "the same photograph in two encodings"


def test_broken_images_are_named_and_the_others_unharmed(engine, broken_files, photo_jpeg):
    good = photo_jpeg(60, 80)
    def gone():
        raise FileNotFoundError("nowhere")

    values = [*readers([good, *broken_files.values()]), gone, *readers([good])]
    images, problems = engine(16).load(values, [draw_of()] * len(values))
    assert problems[0] is problems[-1] is None
    assert all(problems[1:-1]) and problems[-2] == "missing"
    assert problems[2] == "empty file" and problems[4] == "not an image"
    assert images[0].any() and not images[1:-1].any()
    np.testing.assert_array_equal(images[0], images[-1])


def test_all_images_broken(engine, broken_files):
    values = readers(broken_files.values())
    images, problems = engine(16).load(values, [WHOLE] * len(values))
    assert all(problems) and not images.any()


def test_pillow_says_what_is_wrong(broken_files):
    with pytest.raises(BrokenImage, match="truncated"):
        load_image(broken_files["cut.jpg"], WHOLE, 16)
