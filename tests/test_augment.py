import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd import seeding
from fedkd.data import augment as module
from fedkd.data.augment import AUGMENTATIONS, NUM_DRAWS, AugmentationConfig, augment_, draw
from fedkd.data.augment import _deviation as deviation
from fedkd.data.images import LabelledImages
from fedkd.data.loading import Loader
from fedkd.training import TrainingConfig, batches, epoch_order

CHANGING = sorted(set(AUGMENTATIONS) - {"none"})
FLIP_ROWS, FLIP_COLUMNS, TRANSPOSE, BRIGHTNESS, CONTRAST, SATURATION, HUE, CHOICE, AMOUNT = range(9)


def pixels(batch=64, height=6, width=6):
    return torch.rand((batch, 3, height, width), generator=seeding.generator(0, "test"))


def draws(num, *keys):
    return draw(np.arange(num), seeding.rng(0, "augment", *keys))


def neutral(num=1):
    """Draws that neither flip nor change anything else, unless a preset must."""
    return np.full((num, NUM_DRAWS), 0.5)


def augmented(name, images, numbers, **settings):
    return augment_(images.clone(), numbers, AugmentationConfig(name=name, **settings))


def test_every_name_has_a_line_and_a_function():
    names = AugmentationConfig.model_fields["name"].annotation.__args__
    assert set(names) == set(AUGMENTATIONS) == {"none", *module._PRESETS}


def test_none_leaves_the_images_alone():
    images = pixels()
    before = images.clone()
    assert augment_(images, draws(64), AugmentationConfig(name="none")) is images
    assert torch.equal(images, before)


# Random numbers


@given(st.permutations(range(7)))
def test_an_images_draws_do_not_depend_on_the_order(order):
    table = draws(7, 1)
    assert np.array_equal(draw(np.array(order), seeding.rng(0, "augment", 1)), table[order])


def test_an_image_that_is_drawn_again_gets_other_numbers():
    drawn = draw(np.array([3, 1, 3, 3]), seeding.rng(0, "augment"))
    assert len(np.unique(drawn, axis=0)) == 4


@pytest.mark.parametrize("name", CHANGING)
@pytest.mark.parametrize(
    "changes", [{"batch_size": 5}, {"shuffle": False}, {"batch_size": 4, "drop_last": True}]
)
def test_batches_and_their_order_do_not_change_what_an_image_becomes(name, changes):
    rng = seeding.rng(0, "images")
    store = LabelledImages(
        rng.integers(0, 256, (11, 3, 9, 9), dtype=np.uint8), np.zeros(11, np.int64), ("a",)
    )
    loader = Loader(store, np.arange(11), torch.device("cpu"), torch.float32)

    def seen(**settings):
        config = TrainingConfig(**settings)
        order = epoch_order(store.labels, config, seeding.rng(0, "order"))
        table = draw(order, seeding.rng(0, "augment", 1, 0, 0))
        places = batches(np.arange(11), config.batch_size, config.drop_last)
        preset = AugmentationConfig(name=name)
        return {
            int(position): image
            for place in places
            for position, image in zip(
                order[place],
                augment_(loader.batch(order[place])[0], table[place], preset),
                strict=True,
            )
        }

    first, second = seen(), seen(**changes)
    assert len(second) == (8 if "drop_last" in changes else 11)
    assert all(torch.equal(first[position], image) for position, image in second.items())


@pytest.mark.parametrize("name", CHANGING)
@pytest.mark.parametrize("shape", [(13, 13), (200, 7), (1, 5), (3, 1)])
@settings(max_examples=15)
@given(rows=st.lists(st.integers(0, 9), min_size=1, max_size=12))
def test_an_image_does_not_depend_on_its_neighbours_to_the_bit(name, shape, rows):
    images, numbers = pixels(10, *shape), draws(10)
    together = augmented(name, images, numbers)
    assert torch.equal(augmented(name, images[rows], numbers[rows]), together[rows])


@pytest.mark.parametrize("name", CHANGING)
def test_large_batches_are_worked_on_in_parts_with_the_same_result(name, monkeypatch):
    together = augmented(name, pixels(9), draws(9))
    monkeypatch.setattr(module, "_VALUES_AT_ONCE", 2 * 3 * 6 * 6)
    assert torch.equal(augmented(name, pixels(9), draws(9)), together)


@pytest.mark.parametrize("name", CHANGING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_change_in_place_within_range_and_keep_dtype_and_shape(name, dtype):
    images = pixels(8, 10, 14).to(dtype)
    before = images.clone()
    out = augment_(images, draws(8), AugmentationConfig(name=name))
    assert out is images
    assert out.dtype == dtype
    assert not torch.equal(out, before)
    assert -1e-6 <= out.min() <= out.max() <= 1 + 1e-6


def test_torch_has_its_threads_again_whatever_happens(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setitem(module._PRESETS, "dihedral", lambda *_: 1 / 0)
    try:
        augmented("fedmas_isic", pixels(2), draws(2))
        assert torch.get_num_threads() == 3
        with pytest.raises(ZeroDivisionError):
            augmented("dihedral", pixels(2), draws(2))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


# Presets


def test_dihedral_gives_each_of_the_eight_views_and_nothing_else():
    image = pixels(1)
    views = [torch.rot90(image, k, (2, 3)) for k in range(4)]
    views += [view.flip(3) for view in views]
    out = augmented("dihedral", image.expand(200, -1, -1, -1), draws(200))
    found = [next(i for i, v in enumerate(views) if torch.equal(v[0], o)) for o in out]
    assert set(found) == set(range(8))


def test_images_that_are_not_square_only_flip():
    image = pixels(1, 4, 6)
    views = [image, image.flip(2), image.flip(3), image.flip((2, 3))]
    out = augmented("dihedral", image.expand(50, -1, -1, -1), draws(50))
    found = [next(i for i, v in enumerate(views) if torch.equal(v[0], o)) for o in out]
    assert set(found) == set(range(4))


def test_zero_strength_is_dihedral():
    first = augmented("dihedral_jitter", pixels(), draws(64), strength=0.0)
    torch.testing.assert_close(first, augmented("dihedral", pixels(), draws(64)))


def test_strength_is_the_largest_change_of_brightness():
    numbers = neutral(2)
    numbers[:, BRIGHTNESS] = 0, 1 - 1e-12
    images = torch.full((2, 3, 4, 4), 0.5)
    out = augmented("dihedral_jitter", images, numbers, strength=0.3)
    torch.testing.assert_close(out[:, 0, 0, 0], torch.tensor([0.35, 0.65]))


@pytest.mark.parametrize("name", CHANGING)
@pytest.mark.parametrize(("column", "axis"), [(FLIP_ROWS, -2), (FLIP_COLUMNS, -1)])
def test_every_preset_flips_by_the_same_coins(name, column, axis):
    # Symmetrical but for the flip: blurred alike, turned by 0 degrees, scaled about the centre.
    images, numbers = pixels(1, 12, 12), neutral()
    plain = augmented(name, images, numbers)
    numbers[0, column] = 0.4
    flipped = augmented(name, images, numbers)
    torch.testing.assert_close(flipped, plain.flip(axis), rtol=0, atol=1e-5)
    assert (flipped - plain).abs().max() > 0.1


def test_the_blur_of_fedmas_is_that_of_a_large_picture():
    """Variance of 5 and 9 taps at sigma 5, in the pixels of an image of 450 x 600."""
    image = torch.zeros(1, 3, 45, 60)
    image[..., 22, 30] = 1
    numbers = neutral()
    numbers[0, -1] = 1  # sigma 5
    enlarged = torch.zeros(1, 3, 450, 600)
    enlarged[..., 225, 300] = 1
    spread = augmented("fedmas_isic", enlarged, numbers)[0, 0]
    for axis, taps in ((0, 9), (1, 5)):
        offsets = np.arange(taps) - taps // 2
        weights = np.exp(-(offsets**2) / 50)
        variance = (weights * offsets**2).sum() / weights.sum()
        places = torch.arange(spread.shape[axis]) - (225, 300)[axis]
        seen = (spread.sum(1 - axis) * places**2).sum()
        assert seen == pytest.approx(variance, rel=0.05)
    # At a tenth of the size its width is a tenth: 0.25 pixels at most, of which little is seen.
    assert augmented("fedmas_isic", image, numbers)[0, 0, 22, 30] > 0.99


def test_a_cut_off_gaussian_is_as_wide_as_its_taps():
    # Three equal taps: variance 2/3. A sigma far below a pixel: no width.
    widths = deviation(torch.tensor([1e6, 0.01], dtype=torch.float64), 1)
    assert widths.tolist() == pytest.approx([(2 / 3) ** 0.5, 1e-3])


@pytest.mark.parametrize(("amount", "degrees"), [(0.0, -10), (0.5, 0), (1.0, 10)])
def test_fedmas_isic_rotates_by_up_to_ten_degrees(amount, degrees):
    rotation = module._rotation(torch.tensor([degrees], dtype=torch.float64))
    images, numbers = pixels(1, 20, 20), neutral()
    numbers[0, [AMOUNT, -1]] = amount, 0  # sigma 0.1 blurs nothing
    expected = module.transforms.affine(images, rotation)
    torch.testing.assert_close(augmented("fedmas_isic", images, numbers), expected)


def test_fedmas_skin_scales_or_shifts_or_rotates():
    image = pixels(1, 40, 40)
    numbers = neutral(4)
    numbers[:, AMOUNT] = 1
    numbers[:, CHOICE] = 0, 0.4, 0.8, 0.8
    numbers[3, AMOUNT] = 0.5
    scaled, shifted, rotated, plain = augmented("fedmas_skin", image.expand(4, -1, -1, -1), numbers)
    torch.testing.assert_close(plain, image[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(shifted[:, :, 2:], image[0, :, :, :-2], rtol=0, atol=1e-5)
    assert shifted[:, :, :2].abs().max() < 1e-5  # 5 % of 40, black
    assert rotated[:, 0, 0].abs().max() == 0  # corners of 45 degrees come from outside
    assert (scaled - plain).abs().max() > 0.1
    assert scaled[:, 0, 0].min() > 0  # 1.2 times larger: nothing from outside


@pytest.mark.parametrize("column", [BRIGHTNESS, CONTRAST, SATURATION, HUE])
def test_fedmas_skin_changes_each_colour_property(column):
    images, numbers = pixels(1, 8, 8), neutral()
    plain = augmented("fedmas_skin", images, numbers)
    numbers[0, column] = 1
    assert (augmented("fedmas_skin", images, numbers) - plain).abs().max() > 0.01
