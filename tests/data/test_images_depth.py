"""Images with 9 to 16 bits: values, bits that the user names, and the limit of pixels."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from headstart.data.images import MAX_PIXELS, ImageOptions, decode, unreadable_reason
from headstart.errors import UnreadableImageError, UsageError

RNG = np.random.default_rng(0)


def png(values, colour_type, interlaced=False):
    """A PNG of 16 bits, written by hand: Pillow writes no colour of 16 bits."""
    height, width = values.shape[:2]

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, interlaced)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("bits", [9, 10, 11, 12, 13, 14, 15, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_bits_in_16_give_the_same_as_file_array_and_pil_image(bits, channels, tmp_path):
    white = 2**bits - 1
    values = RNG.integers(0, white + 1, (7, 11, channels)).astype(np.uint16)
    expected = np.rint(values * np.float32(255 / white)).astype(np.uint8)
    expected = np.broadcast_to(expected, (7, 11, 3))
    path = tmp_path / "1.png"
    path.write_bytes(png(values, 0 if channels == 1 else 2))
    options = ImageOptions(bits=bits)
    with Image.open(path) as image:
        for source in (path, path.read_bytes(), values, image):
            np.testing.assert_array_equal(decode(source, options=options), expected)


def test_transparency_of_16_bits():
    values = RNG.integers(0, 65536, (7, 11, 4)).astype(np.uint16)
    np.testing.assert_allclose(decode(png(values, 6)), decode(values), atol=1)


@pytest.mark.parametrize("bits", [9, 12, 15])
@pytest.mark.parametrize("channels", [1, 3])
def test_values_above_the_named_bits_are_refused(bits, channels):
    values = np.full((4, 4, channels), 2**bits, np.uint16)
    options = ImageOptions(bits=bits)
    with pytest.raises(UnreadableImageError) as error:
        decode(png(values, 0 if channels == 1 else 2), options=options)
    assert f"values outside 0 to {2**bits - 1}" in unreadable_reason(error.value)
    with pytest.raises(UsageError, match="larger number of bits"):
        decode(values, options=options)


def test_packed_12_bits_are_not_dark():
    """Two values of 12 bits in three bytes: 0xFFF and 0x800."""
    entries = [(256, 3, 2), (257, 3, 1), (258, 3, 12), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    entries += [(278, 3, 1), (279, 4, 3)]
    start = 12
    body = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    data = b"II*\0" + struct.pack("<I", start) + b"\xff\xf8\x00\0"
    data += struct.pack("<H", len(entries)) + body + b"\0" * 4
    np.testing.assert_array_equal(decode(data)[0, :, 0], [255, 128])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bits": 8}, "`bits` must be a whole number from 9 to 16, got 8"),
        ({"bits": 17}, "--bits"),
        ({"bits": 12.0}, "12.0"),
        ({"bits": True}, "True"),
        ({"bits": "12"}, "'12'"),
        ({"max_pixels": 0}, "--max-pixels"),
        ({"max_pixels": -5}, "-5"),
        ({"max_pixels": 1e9}, "1000000000.0"),
        ({"max_pixels": 2**40}, "`max_pixels`"),
        ({"max_pixels": "many"}, "'many'"),
    ],
)
def test_invalid_options(settings, words):
    with pytest.raises(UsageError) as error:
        ImageOptions(**settings)
    assert words in str(error.value)


def test_the_error_names_the_number_that_is_enough():
    buffer = io.BytesIO()
    Image.new("1", (15_000, 14_000)).save(buffer, "PNG")
    assert MAX_PIXELS < 15_000 * 14_000
    with pytest.raises(UnreadableImageError, match="--max-pixels 210000000 allows it"):
        decode(buffer.getvalue())
