import pytest
import torch

from fedkd import seeding
from fedkd.data.augment import AugmentationConfig, augment


def pixels(batch=64, height=6, width=6):
    return torch.rand((batch, 3, height, width), generator=seeding.generator(0, "test"))


def test_none_returns_the_images():
    images = pixels()
    assert augment(images, AugmentationConfig(name="none"), seeding.generator(0, "a")) is images


def test_dihedral_gives_each_of_the_eight_views_and_nothing_else():
    image = pixels(1)
    views = [torch.rot90(image, k, (2, 3)) for k in range(4)]
    views += [view.flip(3) for view in views]
    out = augment(
        image.expand(200, -1, -1, -1),
        AugmentationConfig(name="dihedral"),
        seeding.generator(0, "a"),
    )
    found = [next(i for i, v in enumerate(views) if torch.equal(v[0], o)) for o in out]
    assert set(found) == set(range(8))


def test_dihedral_keeps_the_shape_of_images_that_are_not_square():
    images = pixels(8, 4, 6)
    out = augment(images, AugmentationConfig(name="dihedral"), seeding.generator(0, "a"))
    assert out.shape == images.shape


def test_equal_generators_give_equal_images():
    config = AugmentationConfig()
    first = augment(pixels(), config, seeding.generator(0, "a", 1))
    assert torch.equal(first, augment(pixels(), config, seeding.generator(0, "a", 1)))
    assert not torch.equal(first, augment(pixels(), config, seeding.generator(0, "a", 2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_jitter_changes_colours_within_range_and_keeps_dtype(dtype):
    images = pixels().to(dtype)
    out = augment(images, AugmentationConfig(), seeding.generator(0, "a"))
    assert out.dtype == dtype
    assert 0 <= out.min() <= out.max() <= 1
    assert (out.mean((1, 2, 3)) - images.mean((1, 2, 3))).abs().max() > 0.02


def test_zero_strength_is_dihedral():
    first = augment(pixels(), AugmentationConfig(strength=0.0), seeding.generator(0, "a"))
    second = augment(pixels(), AugmentationConfig(name="dihedral"), seeding.generator(0, "a"))
    torch.testing.assert_close(first, second)
