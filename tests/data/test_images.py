"""The decoder, compared with numpy formulas and with Pillow's own functions."""

import hashlib
import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from headstart.data.images import (
    ImageOptions,
    decode,
    decode_file,
    digest,
    read_bytes,
    read_header,
    unreadable_reason,
)
from headstart.errors import UnreadableImageError, UsageError


def photo(height=40, width=56, seed=0):
    """A smooth RGB image with texture, shape (height, width, 3)."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 7 + seed) + np.cos(y / (5 + c) + c) for c in range(3)]
    return np.uint8(127 + 60 * np.stack(waves, -1))


def encoded(pixels, fmt="PNG", mode=None, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, fmt, **options)
    return buffer.getvalue()


def with_orientation(pixels, orientation, fmt="JPEG"):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(pixels, fmt, exif=exif, **({"quality": 95} if fmt == "JPEG" else {}))


def png_claiming(width, height):
    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    start = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", start) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def why(source, **options):
    with pytest.raises(UnreadableImageError) as caught:
        decode(source, **options)
    assert str(caught.value).startswith("Expected ")
    return unreadable_reason(caught.value)


@pytest.mark.parametrize("fmt", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "JPEG2000"])
def test_lossless_formats_give_the_pixels_back(fmt):
    options = {"lossless": True} if fmt == "WEBP" else {}
    pixels = decode(encoded(photo(), fmt, **options))
    np.testing.assert_array_equal(pixels, photo())
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous


def test_path_string_and_bytes_are_the_same(tmp_path):
    path = tmp_path / "å image.jpg"
    path.write_bytes(encoded(photo(), "JPEG"))
    before = path.stat()
    for source in (path, str(path), path.read_bytes(), Image.open(path)):
        np.testing.assert_array_equal(decode(source), np.asarray(Image.open(path)))
    assert path.stat() == before


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation, fmt):
    data = with_orientation(photo(), orientation, fmt)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    np.testing.assert_array_equal(decode(data), expected)
    np.testing.assert_array_equal(decode(Image.open(io.BytesIO(data))), expected)
    head = read_header(data)
    assert head.exif_orientation == orientation
    assert (head.width, head.height) == ((40, 56) if orientation > 4 else (56, 40))
    assert decode(data).shape == (head.height, head.width, 3)


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_in_either_byte_order_and_rotation_by_hand(order):
    mark = b"II*\0" if order == "<" else b"MM\0*"
    block = mark + struct.pack(f"{order}IHHHIHH", 8, 1, 0x0112, 3, 1, 6, 0)
    plain = encoded(photo(), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block
    turned = decode(plain[:2] + segment + plain[2:])
    np.testing.assert_array_equal(turned, np.rot90(decode(plain), k=-1))


@pytest.mark.parametrize("block", [b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"junk" * 5])
def test_damaged_exif_is_no_reason_to_refuse_or_warn(block):
    plain = encoded(photo(), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block
    np.testing.assert_array_equal(decode(plain[:2] + segment + plain[2:]), decode(plain))


def test_orientation_out_of_range_is_upright():
    assert read_header(with_orientation(photo(), 9)).exif_orientation == 1


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "TIFF"])
def test_grey_becomes_three_equal_channels(fmt):
    grey = photo()[:, :, 0]
    pixels = decode(encoded(grey, fmt))
    assert pixels.shape == (40, 56, 3)
    assert (pixels == pixels[:, :, :1]).all()
    np.testing.assert_allclose(pixels[:, :, 0], grey, atol=0 if fmt != "JPEG" else 12)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("fmt", ["PNG", "TIFF"])
def test_transparency_is_laid_on_white(mode, fmt):
    image = Image.fromarray(photo()).convert(mode)
    alpha = np.uint8(np.linspace(0, 255, 40 * 56).reshape(40, 56))
    image.putalpha(Image.fromarray(alpha))
    colour = np.asarray(image.convert("RGBA"))[:, :, :3].astype(float)
    share = alpha[:, :, None] / 255
    expected = np.rint(colour * share + 255 * (1 - share))
    np.testing.assert_array_equal(decode(encoded(image, fmt)), expected)
    np.testing.assert_array_equal(decode(image), expected)
    assert (decode(image)[0, 0] == 255).all()


def test_palette_with_and_without_transparency():
    image = Image.fromarray(photo()).quantize(32)
    table = np.asarray(image.getpalette()).reshape(-1, 3)
    index = np.asarray(image)
    np.testing.assert_array_equal(decode(encoded(image)), table[index])
    expected = table.copy()
    expected[5] = 255
    np.testing.assert_array_equal(decode(encoded(image, transparency=5)), expected[index])
    np.testing.assert_array_equal(decode(encoded(image, "GIF", transparency=5)), expected[index])
    half = np.rint(table * 128 / 255 + 255 * (127 / 255))[index]
    some = decode(encoded(image, transparency=bytes([128] * 32)))
    np.testing.assert_allclose(some, half, atol=1)


def test_transparent_colour_of_grey_and_rgb():
    grey = np.repeat(np.arange(4, dtype=np.uint8)[:, None] * 60, 4, axis=1)
    assert decode(encoded(grey, transparency=60))[1].min() == 255
    assert decode(encoded(grey, transparency=60))[2].max() == 120


@pytest.mark.parametrize("fmt", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_and_never_clipped(fmt):
    deep = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    pixels = decode(encoded(deep, fmt))
    np.testing.assert_array_equal(pixels[:, :, 0], np.rint(deep / 257))
    assert np.unique(pixels).size == 256


def test_sixteen_bits_of_either_byte_order():
    deep = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    for mode, kind in (("I;16", "<u2"), ("I;16B", ">u2"), ("I", "<i4")):
        image = Image.frombytes(mode, (16, 16), deep.astype(kind).tobytes())
        np.testing.assert_array_equal(decode(image)[:, :, 0], np.arange(256).reshape(16, 16))
    every = decode(np.arange(65536, dtype=np.uint16).reshape(256, 256))[:, :, 0]
    np.testing.assert_array_equal(every.ravel(), np.rint(np.arange(65536) / 257))


def test_integers_beyond_sixteen_bits_are_refused():
    assert "0 to 65535" in why(encoded(np.full((8, 8), 70000, np.int32), "TIFF"))
    assert "0 to 65535" in why(encoded(np.full((8, 8), -1, np.int32), "TIFF"))


def test_floating_point_tiff():
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    pixels = decode(encoded(values, "TIFF"))
    np.testing.assert_array_equal(pixels[:, :, 0], np.rint(values * 255))
    for bad in (2.0, -0.1, np.nan):
        assert "0 to 1" in why(encoded(np.full((8, 8), bad, np.float32), "TIFF"))


@pytest.mark.parametrize("fmt", ["TIFF", "JPEG"])
def test_cmyk(fmt):
    ink = np.stack([*np.moveaxis(photo(), -1, 0), photo(seed=3)[:, :, 0] // 2], -1)
    options = {"quality": 100, "subsampling": 0} if fmt == "JPEG" else {}
    data = encoded(Image.frombytes("CMYK", (56, 40), ink.tobytes()), fmt, **options)
    light = 255 - ink.astype(float)
    expected = light[:, :, :3] * light[:, :, 3:] / 255
    assert read_header(data).mode == "CMYK"
    assert (b"Adobe" in data) == (fmt == "JPEG")
    np.testing.assert_allclose(decode(data), expected, atol=8 if fmt == "JPEG" else 1)


def test_one_bit():
    checks = np.indices((10, 12)).sum(0) % 2 == 0
    np.testing.assert_array_equal(decode(encoded(checks))[:, :, 1], checks * 255)


@pytest.mark.parametrize("mode", ["YCbCr", "LAB", "HSV"])
def test_other_colour_spaces(mode):
    image = Image.fromarray(photo())
    if mode == "LAB":
        flat = Image.frombytes("LAB", (2, 1), bytes([255, 0, 0, 0, 0, 0]))
        np.testing.assert_allclose(decode(flat)[0, :, 0], [255, 0], atol=2)
    else:
        np.testing.assert_allclose(decode(image.convert(mode)), photo(), atol=8)
    if mode == "YCbCr":
        np.testing.assert_allclose(decode(encoded(image, "TIFF", mode)), photo(), atol=3)


@pytest.mark.parametrize("fmt", ["GIF", "WEBP", "TIFF", "PNG"])
def test_first_of_several_frames(fmt):
    first, second = Image.fromarray(photo()), Image.fromarray(255 - photo())
    options = {"save_all": True, "append_images": [second, second.rotate(90)]}
    if fmt == "WEBP":
        options["lossless"] = True
    data = encoded(first, fmt, **options)
    assert read_header(data).n_frames == 3
    np.testing.assert_allclose(decode(data), photo(), atol=40 if fmt == "GIF" else 0)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0, 255]], np.uint8), [0, 255]),
        (np.array([[[7], [8]]], np.uint8), [7, 8]),
        (np.array([[0.0, 1.0]]), [0, 255]),
        (np.array([[0.25, 0.75]], np.float16), [64, 191]),
        (np.array([[257, 65535]], np.uint16), [1, 255]),
        (np.array([[257, 65535]], ">u2"), [1, 255]),
        (np.array([[True, False]]), [255, 0]),
        (np.array([[[9, 9, 9, 255], [9, 9, 9, 0]]], np.uint8), [9, 255]),
        (np.array([[[0.2, 0.2, 0.2], [1, 1, 1]]]), [51, 255]),
    ],
)
def test_arrays(array, expected):
    pixels = decode(array)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (1, 2, 3)
    np.testing.assert_array_equal(pixels, np.repeat(np.array([expected])[:, :, None], 3, 2))


def test_array_is_copied():
    original = photo()
    decode(original)[:] = 0
    np.testing.assert_array_equal(original, photo())
    flipped = decode(original[::-1, ::-1])
    np.testing.assert_array_equal(flipped, original[::-1, ::-1])
    assert flipped.flags.c_contiguous


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((3, 40, 50), np.uint8), "channels to the last axis"),
        (np.zeros((4, 4, 2), np.uint8), "channels"),
        (np.zeros((0, 4, 3), np.uint8), "shape"),
        (np.zeros(12, np.uint8), "shape"),
        (np.zeros((1, 4, 4, 3), np.uint8), "shape"),
        (np.zeros((4, 4), np.int64), "int64"),
        (np.zeros((4, 4), complex), "complex"),
        (np.zeros((4, 4), object), "object"),
        (np.full((4, 4), 255.0), "Divide"),
        (np.full((4, 4), -1.0), "Divide"),
        (np.full((4, 4), np.nan), "nan"),
    ],
)
def test_arrays_that_are_no_images(array, says):
    for function in (decode, digest):
        with pytest.raises(UsageError, match=says):
            function(array)


def test_draft_is_smaller_deterministic_and_close():
    large = np.kron(photo(64, 96), np.ones((10, 10, 1), np.uint8))
    data = encoded(large, "JPEG", quality=95)
    small = decode(data, at_least=75)
    assert small.shape == (160, 240, 3)
    np.testing.assert_array_equal(small, decode(data, at_least=75))
    reference = np.asarray(Image.fromarray(large).resize((240, 160), Image.Resampling.BOX))
    assert np.abs(small.astype(int) - reference).mean() < 3
    assert decode(data, at_least=400).shape == large.shape
    assert decode(encoded(large), at_least=75).shape == large.shape
    turned = decode(with_orientation(large, 6), at_least=75)
    assert turned.shape == (240, 160, 3)


@pytest.mark.parametrize("at_least", [None, 20])
@pytest.mark.parametrize("progressive", [False, True])
def test_truncated_jpeg_is_found_in_draft_mode_too(at_least, progressive):
    data = encoded(photo(320, 400), "JPEG", progressive=progressive)
    for share in (0.3, 0.6, 0.9):
        text = why(data[: int(share * len(data))], at_least=at_least)
        assert "truncated" in text


@pytest.mark.parametrize("fmt", ["PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_truncated_files_of_other_formats(fmt):
    data = encoded(photo(200, 200), fmt)
    assert "damaged" in why(data[: len(data) * 2 // 3])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "an empty file"),
        (b"\0" * 3000, "zeros"),
        (b"<!DOCTYPE html><html>Not found", "an HTML page"),
        (b"\n\n<HTML>", "an HTML page"),
        (b"path,label\na.jpg,cat\n", "a text file"),
        (b"%PDF-1.7 ...", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (b"PK\x03\x04" + b"\0" * 40, "ZIP"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 40, "HEIC"),
        (b"\xff\xd8\xff", "damaged JPEG"),
        (b"\x89PNG\r\n\x1a\n", "damaged PNG"),
        (bytes(range(256)) * 4, "unknown format"),
    ],
)
def test_what_is_no_image_is_named(data, says, tmp_path):
    assert says in why(data)
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    with pytest.raises(UnreadableImageError, match=r"photo\.jpg"):
        decode(path)
    with pytest.raises(UnreadableImageError):
        read_header(data)


def test_missing_files_and_folders(tmp_path):
    assert why(tmp_path / "none.jpg") == "no such file"
    assert why(tmp_path) == "a folder"
    assert "cannot be read" in why("nul\0byte")


def test_bomb_is_refused_before_decoding_and_without_a_warning():
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "100000 x 100000 pixels" in why(png_claiming(100_000, 100_000))
        assert "limit" in why(png_claiming(13_500, 13_500))
        assert "damaged" in why(png_claiming(10_000, 10_000)), "between Pillow's two limits"
    assert why(encoded(photo()), options=ImageOptions(max_pixels=100)).startswith("56 x 40 pixels")
    with pytest.raises(UnreadableImageError, match="limit"):
        decode(Image.fromarray(photo()), options=ImageOptions(max_pixels=100))
    assert limit == Image.MAX_IMAGE_PIXELS
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


SEEDS = [
    encoded(photo(), "JPEG"),
    encoded(photo(), "JPEG", progressive=True),
    with_orientation(photo(), 6),
    encoded(photo()),
    encoded(Image.fromarray(photo()).quantize(16), transparency=3),
    encoded(photo(), "GIF"),
    encoded(photo(), "WEBP"),
    encoded(photo(), "BMP"),
]


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6),
    st.integers(0, 10**6),
    st.booleans(),
)
def test_damage_gives_an_image_or_the_one_error(data, flips, cut, keep):
    damaged = bytearray(data)
    for at, value in flips:
        damaged[at % len(damaged)] = value
    content = bytes(damaged if keep else damaged[: cut % len(damaged)])
    try:
        head, pixels = decode_file(content, options=ImageOptions(max_pixels=10**7))
        read_header(content)
    except UnreadableImageError as error:
        outcome = unreadable_reason(error)
    else:
        outcome = "an image"
        assert pixels.shape[2] == 3
        assert pixels.shape[:2] == (head.height, head.width)
    assert outcome


def test_digest_is_of_the_content(tmp_path):
    data = encoded(photo())
    (tmp_path / "a.png").write_bytes(data)
    assert digest(tmp_path / "a.png") == digest(data) == hashlib.sha256(data).hexdigest()
    assert digest(photo()) == digest(photo()[:, ::-1][:, ::-1])
    assert read_bytes(tmp_path / "a.png") == data


def test_digest_tells_pixels_apart():
    palette = Image.fromarray(photo()).quantize(8)
    other = palette.copy()
    other.putpalette([255 - v for v in palette.getpalette()])
    turned = Image.open(io.BytesIO(with_orientation(photo(), 6)))
    upright = Image.open(io.BytesIO(with_orientation(photo(), 1)))
    grey = np.arange(16, dtype=np.uint8)
    sources = [
        palette, other, turned, upright, grey.reshape(4, 4), grey.reshape(2, 8),
        grey.reshape(4, 4).astype(np.uint16), Image.fromarray(grey.reshape(4, 4)),
    ]  # fmt: skip
    assert len({digest(source) for source in sources}) == len(sources)
    assert digest(palette) == digest(palette.copy())


def test_threads():
    sources = [encoded(photo(seed=i), ("PNG", "WEBP")[i % 2], lossless=True) for i in range(16)]
    wrong = []

    def work(i):
        if not np.array_equal(decode(sources[i]), photo(seed=i)):
            wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
