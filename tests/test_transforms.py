"""Single operations against torchvision's, image by image with the same parameters."""

import pytest
import torch
import torchvision.transforms.v2.functional as V
from torchvision.transforms import InterpolationMode

from fedkd import seeding
from fedkd.data import transforms

BILINEAR = InterpolationMode.BILINEAR
FACTORS = torch.tensor([0.75, 1.0, 1.25, 0.0], dtype=torch.float64)
IDENTITY = torch.tensor([[1.0, 0, 0], [0, 1, 0]], dtype=torch.float64)


def pixels(height=12, width=17):
    images = torch.rand((4, 3, height, width), generator=seeding.generator(0, "test"))
    images[0] = images[0, :1]  # grey has no hue
    images[1, :, :3] = 0  # black has no saturation
    return images


def assert_each_equals(batch, images, reference, parameters):
    expected = [
        reference(image[None], value)[0] for image, value in zip(images, parameters, strict=True)
    ]
    torch.testing.assert_close(batch, torch.stack(expected), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("operation", "reference"),
    [
        (transforms.brightness_, V.adjust_brightness),
        (transforms.contrast_, V.adjust_contrast),
        (transforms.saturation_, V.adjust_saturation),
    ],
)
def test_colours_change_as_in_torchvision(operation, reference):
    images = pixels()
    assert_each_equals(operation(images.clone(), FACTORS), images, reference, FACTORS.tolist())


def test_hue_turns_as_in_torchvision():
    images, turns = pixels(), torch.tensor([0.01, -0.01, 0.5, -0.3], dtype=torch.float64)
    assert_each_equals(transforms.hue_(images.clone(), turns), images, V.adjust_hue, turns.tolist())


def test_a_third_of_a_turn_makes_red_green():
    red = torch.tensor([0.9, 0.1, 0.1]).view(1, 3, 1, 1)
    turned = transforms.hue_(red, torch.tensor([1 / 3], dtype=torch.float64))
    torch.testing.assert_close(turned.flatten(), torch.tensor([0.1, 0.9, 0.1]))


@pytest.mark.parametrize("shape", [(12, 17), (16, 16)])
def test_images_rotate_scale_and_shift_as_in_torchvision(shape):
    images = pixels(*shape)
    angle = torch.deg2rad(torch.tensor(30.0, dtype=torch.float64))
    turn = torch.tensor([[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0]])
    scale, shift = IDENTITY / 1.2, IDENTITY.clone()
    shift[:, 2] = torch.tensor([-2, 3])  # two to the right, three up
    moved = transforms.affine(images, torch.stack([turn.double(), scale, shift, IDENTITY]))
    references = [
        lambda image: V.rotate(image, 30, BILINEAR),
        lambda image: V.affine(image, 0, [0, 0], 1.2, [0, 0], BILINEAR),
        lambda image: V.affine(image, 0, [2, -3], 1, [0, 0], BILINEAR),
        lambda image: image,
    ]
    assert_each_equals(moved, images, lambda image, reference: reference(image), references)


def test_what_comes_from_outside_is_black():
    shift = IDENTITY.clone()
    shift[0, 2] = 2  # two to the left
    moved = transforms.affine(torch.ones(1, 3, 4, 5), shift[None])
    torch.testing.assert_close(moved[0, 0, 0], torch.tensor([1.0, 1, 1, 0, 0]))


def test_blur_is_torchvisions():
    images = pixels()
    deviations = torch.tensor([[0.5, 1], [0.3, 0.2], [2, 0.7], [0.1, 5]], dtype=torch.float64)
    blurred = transforms.gaussian_blur(images, deviations, (2, 4))
    assert_each_equals(
        blurred, images, lambda image, s: V.gaussian_blur(image, [5, 9], s), deviations.tolist()
    )


def test_blur_of_no_width_changes_nothing():
    images = pixels()
    deviations = torch.full((4, 2), 1e-3, dtype=torch.float64)
    assert torch.equal(transforms.gaussian_blur(images, deviations, (1, 2)), images)


def test_jitter_by_hand():
    image = torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1)
    factors = (torch.tensor([value], dtype=torch.float64) for value in (0.5, 0.8, 1.2))
    # Times 0.5: 0.1, 0.2, 0.3, grey and mean 0.2. Contrast 0.8: 0.12, 0.2, 0.28. Saturation 1.2.
    jittered = transforms.jitter_(image, *factors)
    torch.testing.assert_close(jittered.flatten(), torch.tensor([0.104, 0.2, 0.296]))


def test_jitter_clamps_at_its_end_only():
    image = torch.tensor([0.4, 0.6]).repeat(3, 1).view(1, 3, 1, 2)
    factors = (torch.tensor([value], dtype=torch.float64) for value in (2, 0.5, 1))
    # Times 2: 0.8, 1.2 with mean 1.0; contrast brings 1.2 back to 1.1, which becomes 1.
    jittered = transforms.jitter_(image, *factors)
    torch.testing.assert_close(jittered[0, 0, 0], torch.tensor([0.9, 1.0]))


def test_every_view_of_the_square_by_its_coins():
    image = torch.arange(12.0).view(1, 3, 2, 2)
    coins = torch.tensor([[r, c, t] for r in (0, 1) for c in (0, 1) for t in (0, 1)]).bool()
    out = transforms.dihedral(image.expand(8, -1, -1, -1), coins)
    # Of the square 0 1 / 2 3: rows flipped 2 3 / 0 1, columns 1 0 / 3 2, transposed 0 2 / 1 3.
    assert out[:, 0].flatten(1).tolist() == [
        [0, 1, 2, 3], [0, 2, 1, 3], [1, 0, 3, 2], [1, 3, 0, 2],
        [2, 3, 0, 1], [2, 0, 3, 1], [3, 2, 1, 0], [3, 1, 2, 0],
    ]  # fmt: skip
