"""Multi-band TIFF: bands, scaling and no-data values against hand computation and tifffile."""

import io
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from headstart.cache import Cache
from headstart.data.bands import bands_to_rgb
from headstart.data.images import (
    ImageOptions,
    decode,
    decode_file,
    digest,
    read_header,
    unreadable_reason,
)
from headstart.data.prepare import readable_samples, to_samples
from headstart.errors import MissingExtraError, UnreadableImageError, UsageError

RNG = np.random.default_rng(0)
SHAPE = (9, 7, 6)


def tif(values, no_data=None, **options):
    """Bytes of a TIFF with interleaved bands, or with others by the options of tifffile."""
    options = {"photometric": "minisblack", "planarconfig": "contig"} | options
    if no_data is not None:
        options["extratags"] = [(42113, "s", 0, no_data, True)]
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def by_hand(values, bands, low, high):
    """The formula of the page, for one image, from two percentiles."""
    layers = []
    for band in bands:
        layer = values[:, :, band - 1].astype(float)
        black, white = np.percentile(layer, [low, high])
        layers.append(np.rint(255 * np.clip((layer - black) / (white - black), 0, 1)))
    return np.stack(layers, axis=2)


def numbers(dtype, shape=SHAPE):
    values = RNG.normal(3000, 900, shape)
    return (values / 9000 if dtype == "float32" else values).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float32", "float64"])
@pytest.mark.parametrize("layout", ["interleaved", "planes", "pages", "deflate", "big"])
def test_bands_of_every_kind_and_layout(dtype, layout):
    values = RNG.integers(0, 256, SHAPE, np.uint8) if dtype == "uint8" else numbers(dtype)
    planes = np.ascontiguousarray(values.transpose(2, 0, 1))
    data = {
        "interleaved": lambda: tif(values),
        "planes": lambda: tif(planes, planarconfig="separate"),
        "pages": lambda: tif(planes, planarconfig=None),
        "deflate": lambda: tif(values, compression="deflate", tile=(16, 16)),
        "big": lambda: tif(values, bigtiff=True, byteorder=">"),
    }[layout]()
    pixels = decode(data, options=ImageOptions(bands="4,3,2"))
    np.testing.assert_array_equal(pixels, by_hand(values, (4, 3, 2), 2, 98))
    assert pixels.dtype == np.uint8
    array = decode(values, options=ImageOptions(bands="4,3,2"))
    np.testing.assert_array_equal(array, pixels)


def test_one_band_and_percentiles():
    values = numbers("int16")
    options = ImageOptions(bands="6", band_range="10%,75.5%")
    expected = by_hand(values, (6, 6, 6), 10, 75.5)
    np.testing.assert_array_equal(decode(tif(values), options=options), expected)


def test_a_range_is_the_same_for_every_image():
    values = np.array([[[0, 1500, 3000], [-50, 750, 9000]]], np.int16)
    options = ImageOptions(bands="3,2,1", band_range="0,3000")
    expected = [[[255, 128, 0], [255, 64, 0]]]
    np.testing.assert_array_equal(decode(tif(values), options=options), expected)


@pytest.mark.parametrize(
    ("dtype", "tag", "flag"),
    [
        ("float32", "-3.4028234663852886e+38", None),
        ("float32", "-9999", None),
        ("int16", "-32768", None),
        ("uint16", "0", None),
        ("uint16", None, 0),
        ("float64", "nan", None),
        ("float32", "7", -9999.0),  # the flag replaces the tag
        ("int16", "-9999\0", None),
    ],
)
def test_pixels_without_data_do_not_count_and_are_black(dtype, tag, flag):
    value = flag if flag is not None else float(tag.strip("\0"))
    values = np.clip(numbers(dtype), 0.01 if dtype[0] == "f" else 1, None)
    holes = RNG.random(SHAPE[:2]) < 0.3
    spoilt = values.copy()
    spoilt[holes] = np.array(value, dtype)
    pixels = decode(tif(spoilt, tag), options=ImageOptions(bands="3,1,2", no_data=flag))
    assert not pixels[holes].any()
    kept = by_hand(values[~holes][None], (3, 1, 2), 2, 98)
    np.testing.assert_array_equal(pixels[~holes], kept[0])


def test_nan_and_infinity_are_no_data():
    values = numbers("float32")
    values[0, 0], values[1, 1] = np.nan, np.inf
    pixels = decode(tif(values), options=ImageOptions(bands="3,1,2"))
    assert not pixels[0, 0].any()
    assert not pixels[1, 1].any()
    only = np.full((4, 4, 5), -1, np.int16)
    assert not bands_to_rgb(only, ImageOptions(bands="1", no_data=-1)).any()
    assert not bands_to_rgb(only, ImageOptions(bands="1")).any()  # equal values


@pytest.mark.parametrize(
    ("values", "options"),
    [
        (numbers("uint16", (9, 7, 5)), {}),
        (numbers("uint16", (9, 7, 13)), {}),
        (RNG.integers(0, 9, (9, 7, 5), np.uint8), {}),
        (RNG.integers(0, 9, (5, 9, 7), np.uint8), {"planarconfig": "separate"}),
        (numbers("float32", (9, 7, 8)), {}),
        (numbers("int16", (9, 7, 6)), {"compression": "deflate"}),
        (RNG.integers(0, 9, (9, 7, 6), np.uint8), {"photometric": "rgb"}),
        (numbers("uint16", (9, 7, 7)), {"bigtiff": True}),
        (numbers("uint16", (9, 7, 7)), {"byteorder": ">"}),
        (numbers("float64", (9, 7, 40)), {}),
    ],
)
def test_more_than_four_bands_need_the_flag(values, options):
    data = tif(values, **options)
    with pytest.raises(UnreadableImageError) as error:
        decode(data)
    assert "without --bands 3,2,1" in unreadable_reason(error.value)
    assert "Pass --bands 3,2,1" in str(error.value)
    assert (read_header(data).width, read_header(data).height) == (7, 9)
    assert decode(data, options=ImageOptions(bands="3,2,1")).shape == (9, 7, 3)


def test_four_channels_and_cmyk_need_no_flag():
    rgba = RNG.integers(0, 256, (9, 7, 4), np.uint8)
    rgba[:, :, 3] = 255
    data = tif(rgba, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(decode(data), rgba[:, :, :3])
    buffer = io.BytesIO()
    Image.fromarray(rgba[:, :, :3]).convert("CMYK").save(buffer, "TIFF")
    assert decode(buffer.getvalue()).shape == (9, 7, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_that_of_pillow(orientation):
    values = RNG.integers(0, 256, (9, 7, 3), np.uint8)
    data = tif(values, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    options = ImageOptions(bands="1,2,3", band_range="0,255")
    header, pixels = decode_file(data, options=options)
    np.testing.assert_array_equal(pixels, decode(data))
    assert (header.height, header.width) == pixels.shape[:2]


def test_white_is_the_smallest_value():
    values = np.array([[0, 100, 200]], np.uint8)
    pixels = decode(
        tif(values, photometric="miniswhite", planarconfig=None),
        options=ImageOptions(bands="1", band_range="0,200"),
    )
    assert pixels[0, :, 0].tolist() == [255, 127, 0]


def test_other_files_and_pil_images_have_channels_as_bands():
    pixels = RNG.integers(0, 256, (9, 7, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    options = ImageOptions(bands="3,2,1", band_range="0,255")
    for source in (buffer.getvalue(), pixels, Image.fromarray(pixels)):
        np.testing.assert_array_equal(decode(source, options=options), pixels[:, :, ::-1])
    with pytest.raises(UnreadableImageError, match="3 bands, where --bands names band 4"):
        decode(buffer.getvalue(), options=ImageOptions(bands="4,3,2"))
    with pytest.raises(UsageError, match="3 bands, where --bands names band 4"):
        decode(pixels, options=ImageOptions(bands="4,3,2"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bands": "4,3"}, "--bands RED,GREEN,BLUE"),
        ({"bands": "0"}, "got '0'"),
        ({"bands": "1.5"}, "got '1.5'"),
        ({"bands": "1,2,3,4"}, "one or three numbers from 1"),
        ({"bands": "red"}, "got 'red'"),
        ({"bands": ""}, "--bands GREY"),
        ({"bands": (4, 3, 2)}, "got (4, 3, 2)"),
        ({"bands": "1", "band_range": "2%,98"}, "--band-range BLACK,WHITE"),
        ({"bands": "1", "band_range": "98%,2%"}, "98%,2%"),
        ({"bands": "1", "band_range": "2%,101%"}, "two percentiles"),
        ({"bands": "1", "band_range": "9,9"}, "9,9"),
        ({"bands": "1", "band_range": "nan,9"}, "nan,9"),
        ({"bands": "1", "band_range": "9"}, "got '9'"),
        ({"bands": "1", "no_data": "x"}, "--no-data VALUE"),
        ({"bands": "1", "no_data": float("nan")}, "got nan"),
        ({"no_data": 0.0}, "need bands"),
        ({"band_range": "0,9"}, "Pass --bands"),
    ],
)
def test_options_that_are_invalid(settings, words):
    with pytest.raises(UsageError) as error:
        ImageOptions(**settings)
    assert words in str(error.value)


def test_the_options_are_part_of_the_identity():
    data = tif(numbers("uint16"))
    options = [
        {},
        {"bands": "4,3,2"},
        {"bands": "2,3,4"},
        {"bands": "4,3,2", "band_range": "0,9"},
        {"bands": "4,3,2", "no_data": 0.0},
    ]
    assert len({digest(data, ImageOptions(**one)) for one in options}) == len(options)


def test_errors_of_files(monkeypatch):
    data, options = tif(numbers("uint16")), ImageOptions(bands="4,3,2")
    with pytest.raises(UnreadableImageError, match="6 bands, where --bands names band 7"):
        decode(data, options=ImageOptions(bands="7"))
    with pytest.raises(UnreadableImageError, match="damaged TIFF"):
        decode(data[:300], options=options)
    with pytest.raises(UnreadableImageError, match="--max-pixels 63 allows it"):
        decode(data, options=ImageOptions(bands="4,3,2", max_pixels=62))
    with pytest.raises(UnreadableImageError, match="no real numbers"):
        decode(tif(np.zeros((5, 5, 5), np.complex64)), options=options)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tifffile", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'headstart\[satellite\]'"):
            decode(data, options=options)
    marked = bytearray(data)
    at = data.index(b"\x03\x01\x03\x00") + 8  # the tag of the compression
    marked[at : at + 2] = (5).to_bytes(2, "little")
    if "imagecodecs" not in sys.modules:
        with pytest.raises(UnreadableImageError, match=r"pip install imagecodecs.*compression LZW"):
            decode(bytes(marked), options=options)


def test_arrays_with_bands_are_samples():
    (sample,) = readable_samples(
        to_samples(numbers("int16")),
        cache=Cache(),
        bad_files="error",
        options=ImageOptions(bands="6,1,2"),
    )
    assert decode(sample.image, options=sample.options).shape == (9, 7, 3)
