import logging

import numpy as np
import pytest
from PIL import Image, features

from fedkd.data.image_files import decode_files


@pytest.fixture
def decode(tmp_path):
    def save_and_decode(image, name, size=16, **options):
        image.save(tmp_path / name, **options)
        images, faults = decode_files([tmp_path / name], size)
        assert faults == []
        return images[0]

    return save_and_decode


def flat(colours):
    """The one colour of an image that has only one."""
    assert (colours == colours[:, :1, :1]).all()
    return colours[:, 0, 0].tolist()


def test_grey_is_repeated(decode):
    assert flat(decode(Image.new("L", (20, 12), 77), "g.png")) == [77, 77, 77]


def test_sixteen_bit_grey_spans_the_whole_range(decode):
    values = np.full((16, 16), 100 * 257, np.uint16)
    assert flat(decode(Image.fromarray(values), "g.png")) == [100, 100, 100]
    assert flat(decode(Image.fromarray(values), "g.tif")) == [100, 100, 100]


def test_transparent_parts_become_black(decode):
    assert flat(decode(Image.new("RGBA", (16, 16), (200, 100, 50, 0)), "t.png")) == [0, 0, 0]


def test_the_transparent_colour_of_an_rgb_image_becomes_black(decode):
    image = Image.new("RGB", (16, 16), (200, 100, 50))
    assert flat(decode(image, "t.png", transparency=(200, 100, 50))) == [0, 0, 0]
    assert flat(decode(image, "u.png", transparency=(1, 2, 3))) == [200, 100, 50]


def test_opaque_rgba_keeps_its_colour(decode):
    layer = Image.new("RGBA", (16, 16), (200, 100, 50, 255))
    assert flat(decode(layer, "t.png")) == [200, 100, 50]


def test_palette_is_looked_up(decode):
    colour = flat(decode(Image.new("RGB", (16, 16), (200, 100, 50)).quantize(4), "p.png"))
    assert np.abs(np.array(colour) - [200, 100, 50]).max() <= 8


def test_cmyk_is_converted(decode):
    red, green, blue = flat(decode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "c.tif"))
    assert red > 200
    assert max(green, blue) < 60


def test_exif_rotation_is_applied(decode):
    image = Image.new("RGB", (16, 16), "black")
    image.paste((255, 255, 255), (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    rotated = decode(image, "e.png", exif=exif)
    assert rotated[:, :8].max() == 0
    assert rotated[:, 8:].min() == 255


def test_oblong_images_are_squeezed_not_cropped(decode):
    image = Image.new("RGB", (64, 32), "black")
    image.paste((255, 255, 255), (32, 0, 64, 32))
    squeezed = decode(image, "o.png")
    assert squeezed[:, :, :7].max() == 0
    assert squeezed[:, :, 9:].min() == 255


def test_shrinking_averages_instead_of_skipping_pixels(decode):
    # A checkerboard of single pixels: without antialiasing it would become black or white.
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    small = decode(Image.fromarray(board), "b.png")
    assert np.abs(small.astype(int) - 127).max() <= 20


def test_faults_name_their_index_and_spare_the_other_files(tmp_path):
    files = [tmp_path / f"{k}.png" for k in range(600)]
    for k, file in enumerate(files):
        Image.new("RGB", (2, 2), (k % 256, 0, 0)).save(file)
    files[3].write_text("no image")
    files[400].unlink()
    images, faults = decode_files(files, 2)
    assert [index for index, _ in faults] == [3, 400]
    assert faults[0][1].startswith("UnidentifiedImageError")
    whole = [k for k in range(600) if k not in (3, 400)]
    assert images[whole, 0, 0, 0].tolist() == [k % 256 for k in whole]


def test_pixels_without_known_range_are_refused(tmp_path):
    Image.new("F", (4, 4), 0.5).save(tmp_path / "float.tif")
    Image.new("I", (4, 4), 70_000).save(tmp_path / "wide.tif")
    _, faults = decode_files([tmp_path / "float.tif", tmp_path / "wide.tif"], 4)
    assert "floating-point pixels have no known range" in faults[0][1]
    assert "grey values span 70000..70000" in faults[1][1]


def test_a_damaged_avif_is_a_fault(tmp_path):
    if not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    file = tmp_path / "a.avif"
    Image.effect_noise((64, 64), 90).convert("RGB").save(file)
    file.write_bytes(file.read_bytes().replace(b"pitm", b"xitm"))
    _, faults = decode_files([file], 16)
    assert [index for index, _ in faults] == [0]


def test_start_of_reading_is_in_the_log(caplog):
    with caplog.at_level(logging.INFO):
        decode_files([], 16)
    assert "reading 0 images, resized to 16 px" in caplog.text
