"""Orientation in every place where Pillow's own transpose finds it, compared with Pillow."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from headstart.data.image_sizes import read_header_from_start, upright_size
from headstart.data.images import decode, read_header
from headstart.data.orientation import info_orientation, split_jpeg, without_png_text

PHOTO = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
EXIF = Image.Exif()
XMP = "<x:xmpmeta><rdf:Description {}</x:xmpmeta>"
XMP_FORMS = (
    'tiff:Orientation="{}"/>',
    "><tiff:Orientation>{}</tiff:Orientation></rdf:Description>",
)


def block(orientation, kind="H", order="<", code=3):
    """An EXIF block with one tag, written by hand."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    value = struct.pack(order + kind, orientation).ljust(4, b"\0")
    return mark + struct.pack(f"{order}IHHHI", 8, 1, 0x0112, code, 1) + value + b"\0" * 4


def encoded(fmt, **options):
    buffer = io.BytesIO()
    Image.fromarray(PHOTO).save(buffer, fmt, **options)
    return buffer.getvalue()


def chunk(kind, content):
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def behind_pixels(data, *chunks):
    return data[:-12] + b"".join(chunks) + data[-12:]


def raw_profile(exif):
    text = f"\nexif\n{len(exif):8}\n{exif.hex()}\n".encode()
    return b"Raw profile type exif\0", text


def segment(content):
    return b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content


def with_segments(*contents):
    plain = encoded("JPEG", quality=95)
    return plain[:2] + b"".join(map(segment, contents)) + plain[2:]


def xmp(value, form=0):
    return XMP.format(XMP_FORMS[form].format(value)).encode()


def itxt(text, compressed=False):
    packed = zlib.compress(text) if compressed else text
    return chunk(b"iTXt", b"XML:com.adobe.xmp\0" + bytes([compressed, 0]) + b"\0\0" + packed)


ADOBE = b"http://ns.adobe.com/xap/1.0/\0"


def cases():
    png = encoded("PNG")
    head, rest = png[:33], png[33:]
    text, profile = raw_profile(b"Exif\0\0" + block(8))
    for value in range(2, 9):
        yield f"png eXIf behind IDAT {value}", behind_pixels(png, chunk(b"eXIf", block(value)))
        yield f"jpeg xmp {value}", with_segments(ADOBE + xmp(value, value % 2))
    yield "png eXIf before IDAT", head + chunk(b"eXIf", block(6)) + rest
    yield "png raw profile tEXt", head + chunk(b"tEXt", text + profile) + rest
    yield (
        "png raw profile zTXt",
        head + chunk(b"zTXt", text + b"\0" + zlib.compress(profile)) + rest,
    )
    yield "png raw profile behind", behind_pixels(png, chunk(b"tEXt", text + profile))
    yield "png xmp", head + itxt(xmp(5)) + rest
    yield "png xmp compressed behind", behind_pixels(png, itxt(xmp(7, 1), compressed=True))
    yield "png exif wins over xmp", behind_pixels(png, itxt(xmp(7)), chunk(b"eXIf", block(3)))
    yield "jpeg exif wins over xmp", with_segments(b"Exif\0\0" + block(3), ADOBE + xmp(6))
    yield "jpeg upright exif wins", with_segments(b"Exif\0\0" + block(1), ADOBE + xmp(6))
    yield (
        "jpeg exif without the tag",
        with_segments(
            b"Exif\0\0" + struct.pack("<4sIHHHII", b"II*\0", 8, 1, 0x0100, 3, 1, 5) + b"\0" * 4,
            ADOBE + xmp(6),
        ),
    )
    for code, kind in {3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}.items():
        for order in "<>":
            name = f"jpeg type {code} {order}"
            yield name, with_segments(b"Exif\0\0" + block(6, kind, order, code))
    yield "webp xmp", encoded("WEBP", lossless=True, xmp=xmp(6))
    yield "webp exif", encoded("WEBP", lossless=True, exif=b"Exif\0\0" + block(8))
    yield "webp exif long", encoded("WEBP", lossless=True, exif=b"Exif\0\0" + block(8, "I", code=4))
    yield "avif xmp", encoded("AVIF", xmp=xmp(6, 1))
    yield "avif exif", encoded("AVIF", exif=b"Exif\0\0" + block(5))
    yield "tiff xmp", encoded("TIFF", tiffinfo={700: xmp(6)})


CASES = dict(cases())


@pytest.mark.parametrize("name", CASES)
def test_is_pillows(name, tmp_path):
    data = CASES[name]
    image = Image.open(io.BytesIO(data))
    expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(decode(data), expected)
    np.testing.assert_array_equal(decode(Image.open(io.BytesIO(data))), expected)
    header = read_header(data)
    assert (header.height, header.width) == expected.shape[:2]
    assert header.exif_orientation != 1 or name == "jpeg upright exif wins"
    (tmp_path / "1").write_bytes(data)
    assert upright_size(tmp_path / "1") == expected.shape[:2]


@pytest.mark.parametrize("place", ["eXIf", "tEXt", "iTXt"])
def test_large_png_with_the_orientation_at_its_end(place, tmp_path):
    noise = np.random.default_rng(1).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    end = {
        "eXIf": chunk(b"eXIf", block(6)),
        "tEXt": chunk(b"tEXt", b"".join(raw_profile(block(6)))),
        "iTXt": itxt(xmp(6)),
    }[place]
    path = tmp_path / "1.png"
    path.write_bytes(behind_pixels(buffer.getvalue(), end))
    assert path.stat().st_size > 2 * 65536
    assert read_header_from_start(path) == read_header(path)
    assert upright_size(path) == (300, 200)


@pytest.mark.parametrize(
    "info",
    [
        {},
        {"exif": b"junk"},
        {"exif": block(9)},
        {"exif": block(0)},
        {"exif": block(6, code=1)},  # bytes
        {"exif": block(6, code=2)},  # text
        {"exif": block(6, code=7)},  # undefined
        {"exif": block(6)[:14]},
        {"xmp": xmp(9)},
        {"xmp": b"tiff:Orientation=6"},
        {"Raw profile type exif": "\nexif\n 4\nnot hex"},
        {"exif": struct.pack("<4sIHHHII", b"II*\0", 8, 1, 0x0112, 5, 1, 26) + b"\0" * 12},  # 0 / 0
    ],
)
def test_no_orientation_is_upright(info):
    assert info_orientation(info) == 1


def test_a_bytes_filler_between_segments():
    data = with_segments(b"Exif\0\0" + block(6))
    assert split_jpeg(data[:2] + b"\xff\xff" + data[2:])[1] == 6


@pytest.mark.parametrize("megabytes", [2, 8])
@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "tEXt"])
@pytest.mark.parametrize("behind", [False, True])
def test_png_with_megabytes_of_text_opens(kind, megabytes, behind):
    info = PngInfo()
    note = "a" * (megabytes << 20)
    if kind == "iTXt":
        info.add_itxt("note", note, zip=True)
    else:
        info.add_text("note", note, zip=kind == "zTXt")
    data = encoded("PNG", pnginfo=info)
    if behind:
        text = data[33 : data.index(b"IDAT") - 4]
        data = behind_pixels(data.replace(text, b"", 1), text)
    np.testing.assert_array_equal(decode(data), PHOTO)
    np.testing.assert_array_equal(decode(without_png_text(data)), PHOTO)


def test_hundred_megabytes_of_text_in_many_chunks():
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * (1 << 20)))
    np.testing.assert_array_equal(decode(behind_pixels(encoded("PNG"), *[text] * 100)), PHOTO)
