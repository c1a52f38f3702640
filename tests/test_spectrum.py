import pytest
import torch

from fedkd import seeding
from fedkd.fourier import spectrum

SIZES = [(32, 32), (31, 33), (28, 30), (17, 16), (224, 224)]


def images(height, width, num=2, dtype=torch.float32):
    rng = seeding.generator(0, "images", height, width)
    return torch.rand(num, 3, height, width, generator=rng).to(dtype)


def half_map(height, width, symmetric=True):
    rng = seeding.generator(1, "map", height, width)
    values = torch.randn(2, 3, height, width // 2 + 1, generator=rng)
    return spectrum.symmetrise(values, width) if symmetric else values


@pytest.mark.parametrize("size", SIZES)
def test_inverse_gives_the_image_back_at_even_and_odd_sizes(size):
    u = images(*size)
    torch.testing.assert_close(spectrum.irfft2(spectrum.rfft2(u), size), u, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_full_plane_of_a_half_spectrum_is_the_full_transform(size):
    u = images(*size, dtype=torch.float64)
    full = spectrum.full_from_half(spectrum.rfft2(u), size[1])
    assert full.shape == u.shape
    torch.testing.assert_close(full, torch.fft.fft2(u), atol=1e-9, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_symmetrised_gain_keeps_images_real(size):
    # Oracle O2.
    u, gain = images(*size), half_map(*size).exp()
    out = torch.fft.ifft2(torch.fft.fft2(u) * spectrum.full_from_half(gain, size[1]))
    assert out.imag.abs().max() < 1e-6 * out.real.abs().max()


@pytest.mark.parametrize("size", SIZES)
def test_half_plane_result_is_that_of_the_full_plane(size):
    # Oracle O5, second half.
    u, gain = images(*size), half_map(*size).exp()
    half = spectrum.irfft2(spectrum.rfft2(u) * gain, size)
    full = torch.fft.ifft2(torch.fft.fft2(u) * spectrum.full_from_half(gain, size[1])).real
    torch.testing.assert_close(half, full, atol=1e-6 * float(full.abs().max()), rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_real_part_of_any_gain_is_that_of_the_symmetrised_gain(size):
    # Oracle O5: what a free full-plane gain does to a real image is its symmetric part alone.
    u = images(*size, dtype=torch.float64)
    gain = torch.rand(u.shape, generator=seeding.generator(2, "gain"), dtype=torch.float64)
    mirrored = gain.flip(-2, -1).roll((1, 1), (-2, -1))
    half = ((gain + mirrored) / 2)[..., : size[1] // 2 + 1]
    torch.testing.assert_close(spectrum.symmetrise(half, size[1]), half, atol=1e-15, rtol=0)
    full = torch.fft.ifft2(torch.fft.fft2(u) * gain).real
    torch.testing.assert_close(
        spectrum.irfft2(spectrum.rfft2(u) * half, size), full, atol=1e-9, rtol=0
    )


def test_without_symmetry_amplitudes_are_not_the_requested_ones():
    u, gain = images(32, 32), half_map(32, 32, symmetric=False).exp()
    requested = spectrum.amplitude(spectrum.rfft2(u)) * gain
    out = spectrum.irfft2(spectrum.rfft2(u) * gain, (32, 32))
    error = (spectrum.amplitude(spectrum.rfft2(out)) - requested).abs() / requested
    assert error[..., [0, 16]].max() > 0.1
    assert error[..., 1:16].max() < 1e-3


@pytest.mark.parametrize("size", SIZES)
def test_symmetrise_changes_only_columns_that_hold_their_own_mirror_images(size):
    values, result = half_map(*size, symmetric=False), half_map(*size)
    own = [0, size[1] // 2] if size[1] % 2 == 0 else [0]
    others = [v for v in range(values.shape[-1]) if v not in own]
    assert torch.equal(result[..., others], values[..., others])
    for v in own:
        for u in range(size[0]):
            mean = (values[..., u, v] + values[..., -u % size[0], v]) / 2
            assert torch.equal(result[..., u, v], mean)


def test_symmetrise_is_idempotent_and_leaves_its_argument_alone():
    values = half_map(32, 32, symmetric=False)
    before = values.clone()
    once = spectrum.symmetrise(values, 32)
    assert torch.equal(spectrum.symmetrise(once, 32), once)
    assert torch.equal(values, before)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.complex64),
        (torch.float16, torch.complex64),
        (torch.float32, torch.complex64),
        (torch.float64, torch.complex128),
    ],
)
def test_spectra_have_float32_precision_at_least(dtype, expected):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = spectrum.rfft2(images(16, 16, dtype=dtype))
        assert half.dtype == expected
        assert spectrum.irfft2(half, (16, 16)).dtype == half.real.dtype


def test_amplitude_of_an_empty_bin_has_gradient_zero():
    u = torch.zeros(1, 1, 16, 16, requires_grad=True)
    spectrum.amplitude(spectrum.rfft2(u)).sum().backward()
    assert torch.equal(u.grad, torch.zeros_like(u))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
def test_only_the_mean_of_a_flat_image_is_not_empty(size, dtype):
    flat = torch.tensor([0.7, 0.123, 1.0], dtype=dtype).view(1, 3, 1, 1).expand(1, 3, *size)
    empty = spectrum.empty_bins(spectrum.amplitude(spectrum.rfft2(flat)))
    assert not empty[..., 0, 0].any()
    assert int(empty.sum()) == empty.numel() - 3


def test_hardly_a_bin_of_the_faintest_eight_bit_noise_is_empty():
    noisy = (0.5 + (images(224, 224) * 2).round() / 255).clamp(0, 1)
    empty = spectrum.empty_bins(spectrum.amplitude(spectrum.rfft2(noisy)))
    assert empty.float().mean() < 0.005


def test_mean_amplitude_is_geometric_and_free_of_the_batches():
    u = images(31, 33, num=6, dtype=torch.float64)
    expected = spectrum.amplitude(spectrum.rfft2(u)).prod(0) ** (1 / 6)
    for batches in ([u], u.split(4), [u[:1], u[1:]]):
        torch.testing.assert_close(spectrum.mean_amplitude(batches), expected)


def test_mean_amplitude_passes_over_black_images_and_survives_flat_ones():
    u = images(16, 16, num=3)
    with_black = torch.cat([u, torch.zeros(1, 3, 16, 16)])
    torch.testing.assert_close(spectrum.mean_amplitude([with_black]), spectrum.mean_amplitude([u]))
    with_flat = torch.cat([u, torch.full((1, 3, 16, 16), 0.5)])
    assert (spectrum.mean_amplitude([with_flat]) > 0).all()


@pytest.mark.parametrize("batches", [[], [torch.zeros(2, 3, 16, 16)]])
def test_mean_amplitude_of_nothing_is_refused(batches):
    with pytest.raises(ValueError, match="not black in each channel"):
        spectrum.mean_amplitude(batches)


def test_mean_amplitude_wants_batches_not_one_tensor_of_images():
    with pytest.raises(ValueError, match="unpack"):
        spectrum.mean_amplitude(images(16, 16))
