"""Kinds of TIFF, written with tifffile: read as the values say, or refused by their names."""

import io

import numpy as np
import pytest
import tifffile

from headstart.data.images import ImageOptions, decode, read_header, unreadable_reason
from headstart.data.tiff import count_pages, describe_tiff, minimum_is_black, read_tags
from headstart.errors import UnreadableImageError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 65536, (9, 13), dtype=np.uint16)
COLOUR = RNG.integers(0, 65536, (9, 13, 3), dtype=np.uint16)


def written(values, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def scaled(values, white=65535):
    grey = np.rint(values * np.float32(255 / white)).astype(np.uint8)
    return grey if grey.ndim == 3 else np.repeat(grey[:, :, None], 3, axis=2)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "lzma", "deflate"])
def test_white_is_the_smallest_of_16_bits(byteorder, compression):
    data = written(
        GREY,
        photometric="miniswhite",
        byteorder=byteorder,
        compression=compression,
    )
    np.testing.assert_array_equal(decode(data), scaled(65535 - GREY))


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_white_is_the_smallest_of_12_bits_and_of_floats(byteorder):
    values = GREY >> 4
    data = written(values, photometric="miniswhite", byteorder=byteorder)
    options = ImageOptions(bits=12)
    np.testing.assert_array_equal(decode(data, options=options), scaled(4095 - values, 4095))
    floats = (GREY / np.float32(65535)).astype(np.float32)
    data = written(floats, photometric="miniswhite", byteorder=byteorder)
    np.testing.assert_allclose(decode(data), scaled(1 - floats, 1), atol=1)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "lzma", "deflate"])
@pytest.mark.parametrize("bits", [16, 12])
def test_16_bits_in_colour_keep_both_bytes(byteorder, compression, bits):
    values = COLOUR >> (16 - bits)
    data = written(values, photometric="rgb", byteorder=byteorder, compression=compression)
    white = 2**bits - 1
    np.testing.assert_array_equal(
        decode(data, options=ImageOptions(bits=bits)), scaled(values, white)
    )
    assert read_header(data).mode == "RGB;16"


def test_16_bits_in_compressed_planes():
    planes = COLOUR.transpose(2, 0, 1)
    data = written(planes, photometric="rgb", planarconfig="separate", compression="deflate")
    np.testing.assert_array_equal(decode(data), COLOUR >> 8)
    with pytest.raises(UnreadableImageError, match="one plane per band"):
        decode(data, options=ImageOptions(bits=12))


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        (
            np.zeros((9, 9, 5), np.uint16),
            {"photometric": "minisblack", "planarconfig": "contig"},
            "5 bands of 16 bits",
        ),
        (
            np.zeros((9, 9, 12), np.uint16),
            {"photometric": "minisblack", "planarconfig": "contig"},
            "12 bands of 16 bits",
        ),
        (
            np.zeros((9, 9, 12), np.uint8),
            {"photometric": "minisblack", "planarconfig": "contig"},
            "12 bands of 8 bits",
        ),
        (np.zeros((9, 9, 3), np.float32), {"photometric": "rgb"}, "floating-point numbers"),
        (np.zeros((9, 9), np.float64), {}, "1 band of 64 bits"),
        (np.zeros((9, 9), np.uint64), {}, "1 band of 64 bits"),
        (np.zeros((9, 9), np.complex64), {}, "complex"),
        (np.zeros((9, 9), np.uint16), {"bigtiff": True, "byteorder": ">"}, "BigTIFF"),
        (np.zeros((9, 9, 3), np.uint32), {"photometric": "rgb"}, "3 bands of 32 bits"),
        (np.zeros((9, 9, 3), np.int16), {"photometric": "rgb"}, "signed numbers"),
        (np.zeros((9, 9), np.float16), {}, "1 band of 16 bits"),
        (
            np.zeros((5, 9, 9), np.uint16),
            {"photometric": "minisblack", "planarconfig": "separate"},
            "5 bands",
        ),
        (
            COLOUR.transpose(2, 0, 1),
            {"photometric": "rgb", "planarconfig": "separate"},
            "3 bands of 16 bits",
        ),
    ],
)
def test_kinds_that_are_not_supported_are_called_so(values, options, words):
    with pytest.raises(UnreadableImageError) as error:
        decode(written(values, **options))
    reason = unreadable_reason(error.value)
    assert "a TIFF of a kind that is not supported" in reason
    assert words in reason
    assert "damaged" not in str(error.value)


@pytest.mark.parametrize("cut", [5, 8, 20, 60, 150])
def test_damaged_files_are_called_damaged(cut):
    data = written(GREY, photometric="minisblack")
    with pytest.raises(UnreadableImageError, match="damaged"):
        decode(data[:cut])


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("pages", [1, 2, 7])
def test_pages_are_counted_without_smaller_copies(pages, bigtiff):
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, bigtiff=bigtiff) as file:
        for _ in range(pages):
            file.write(GREY, subifds=0)
        file.write(GREY[::2, ::2], subfiletype=1)
    assert count_pages(buffer.getvalue()) == pages
    assert read_header(buffer.getvalue()).n_frames == pages


def test_a_chain_of_pages_that_ends_in_itself():
    data = bytearray(written(GREY))
    tags = read_tags(bytes(data))
    start = int.from_bytes(data[4:8], "little")
    n_tags = int.from_bytes(data[start : start + 2], "little")
    data[start + 2 + 12 * n_tags :][:4] = start.to_bytes(4, "little")
    assert tags is not None
    assert count_pages(bytes(data)) == 1


@pytest.mark.parametrize("values", [GREY, COLOUR, GREY.astype(np.uint8), GREY[None]])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_tags_are_those_of_tifffile(values, byteorder):
    data = written(values, byteorder=byteorder)
    page = tifffile.TiffFile(io.BytesIO(data)).pages[0]
    tags = read_tags(data)
    assert tags.first(256, 0) == page.imagewidth
    assert tags.first(257, 0) == page.imagelength
    assert tags.first(258, 0) == page.bitspersample
    assert tags.first(262, 9) == int(page.photometric)
    assert minimum_is_black(data) == (data, False)
    assert str(page.bitspersample) in describe_tiff(data)
