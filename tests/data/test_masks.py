import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from headstart.data.dataset import Mask, Palette
from headstart.data.masks import class_counts, decode_mask, mask_orientation, read_raw_mask
from headstart.errors import DataError, UnknownNameError, UnreadableImageError

CODES = Palette(codes=((0, "sky"), (1, "road"), (11, "car")))
COLOURS = Palette(codes=(((255, 0, 0), "car"), ((0, 255, 0), "tree"), ((255, 255, 255), "road")))
GRID = np.random.default_rng(0).choice([0, 1, 11, 255], size=(7, 5)).astype(np.uint8)
EXPECTED = np.select([GRID == 0, GRID == 1, GRID == 11], [0, 1, 2], 255).astype(np.uint8)


def save(folder: Path, image: Image.Image, name: str = "m.png", **options: object) -> Mask:
    image.save(folder / name, **options)
    return Mask(source=folder / name, palette=CODES)


def indexed(grid: NDArray[np.uint8]) -> Image.Image:
    """An indexed image whose colours are all the same: only the index can tell classes apart."""
    image = Image.fromarray(grid).convert("P")
    image.putdata(grid.ravel().tolist())
    image.putpalette([9, 9, 9] * 256)
    return image


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


class TestNumbers:
    @pytest.mark.parametrize("kind", ["grey", "indexed", "rgb", "rgba", "sixteen"])
    def test_files(self, tmp_path: Path, kind: str) -> None:
        image = {
            "grey": Image.fromarray(GRID),
            "indexed": indexed(GRID),
            "rgb": Image.fromarray(GRID).convert("RGB"),
            "rgba": Image.fromarray(GRID).convert("RGBA"),
            "sixteen": Image.fromarray(GRID.astype(np.uint16)),
        }[kind]
        decoded = decode_mask(save(tmp_path, image), CODES.names)
        assert decoded.dtype == np.uint8
        np.testing.assert_array_equal(decoded, EXPECTED)

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
    def test_arrays(self, dtype: type) -> None:
        mask = Mask(source=GRID.astype(dtype), palette=CODES)
        np.testing.assert_array_equal(decode_mask(mask, CODES.names), EXPECTED)

    def test_codes_above_eight_bits(self, tmp_path: Path) -> None:
        palette = Palette(codes=((0, "sky"), (1000, "road")))
        Image.fromarray(np.array([[0, 1000, 255]], dtype=np.uint16)).save(tmp_path / "m.png")
        decoded = decode_mask(Mask(source=tmp_path / "m.png", palette=palette), palette.names)
        assert decoded.tolist() == [[0, 1, 255]]

    def test_grey_of_four_bits_is_not_stretched(self, tmp_path: Path) -> None:
        mask = save(tmp_path, four_bits(np.array([[0, 1], [11, 1]])))
        assert decode_mask(mask, CODES.names).tolist() == [[0, 1], [2, 1]]

    def test_one_bit(self, tmp_path: Path) -> None:
        mask = save(tmp_path, Image.fromarray(np.array([[True, False]])))
        assert decode_mask(mask, CODES.names).tolist() == [[1, 0]]

    def test_the_order_is_that_of_the_classes_asked_for(self) -> None:
        mask = Mask(source=GRID, palette=CODES)
        order = ["car", "more", "road", "sky"]
        decoded = decode_mask(mask, order)
        for name in CODES.names:
            np.testing.assert_array_equal(
                decoded == order.index(name), CODES.names.index(name) == EXPECTED
            )
        assert ((decoded == 255) == (EXPECTED == 255)).all()

    def test_other_ignored_codes(self) -> None:
        palette = Palette(codes=((0, "sky"),), ignored=(255, 11))
        mask = Mask(source=np.array([[0, 11, 255]]), palette=palette)
        assert decode_mask(mask, ["sky"]).tolist() == [[0, 255, 255]]

    def test_several_codes_of_one_class(self) -> None:
        palette = Palette(codes=((0, "sky"), (4, "sky"), (5, "road")))
        mask = Mask(source=np.array([[0, 4, 5]]), palette=palette)
        assert decode_mask(mask, palette.names).tolist() == [[0, 0, 1]]


def four_bits(grid: NDArray[np.int64]) -> Image.Image:
    """A grey PNG of 4 bits a pixel; Pillow cannot write one, so the file is put together here."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    rows = b"".join(b"\0" + bytes([row[0] << 4 | row[1]]) for row in grid.tolist())
    data = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, len(grid), 4, 0, 0, 0, 0))
    data += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return FileOnly(b"\x89PNG\r\n\x1a\n" + data)


class FileOnly(Image.Image):
    def __init__(self, data: bytes) -> None:
        self.data = data

    def save(self, path: Path) -> None:  # type: ignore[override]
        path.write_bytes(self.data)


class TestColours:
    def test_files(self, tmp_path: Path) -> None:
        names = np.array([[0, 1, 2], [2, 2, 0]])
        table = np.array([code for code, _ in COLOURS.codes], dtype=np.uint8)
        for mode in ("RGB", "RGBA"):
            Image.fromarray(table[names]).convert(mode).save(tmp_path / "m.png")
            mask = Mask(source=tmp_path / "m.png", palette=COLOURS)
            np.testing.assert_array_equal(decode_mask(mask, COLOURS.names), names)
        mask = Mask(source=table[names], palette=COLOURS)
        np.testing.assert_array_equal(decode_mask(mask, COLOURS.names), names)

    def test_indexed_files_are_read_by_their_colours(self, tmp_path: Path) -> None:
        image = indexed(np.array([[3, 9, 255]], dtype=np.uint8))
        table = np.zeros((256, 3), dtype=np.uint8)
        table[[3, 9, 255]] = (0, 255, 0), (255, 0, 0), (224, 224, 192)
        image.putpalette(table.ravel().tolist())
        image.save(tmp_path / "m.png")
        decoded = decode_mask(Mask(source=tmp_path / "m.png", palette=COLOURS), COLOURS.names)
        assert decoded.tolist() == [[1, 0, 255]]  # VOC draws what is ignored as index 255

    def test_grey_files_are_colours_too(self, tmp_path: Path) -> None:
        palette = Palette(codes=(((0, 0, 0), "sky"), ((255, 255, 255), "road"), ((9, 0, 0), "x")))
        Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).save(tmp_path / "m.png")
        mask = Mask(source=tmp_path / "m.png", palette=palette)
        assert decode_mask(mask, palette.names).tolist() == [[0, 1]]

    def test_an_ignored_colour(self) -> None:
        palette = Palette(codes=(((1, 2, 3), "sky"),), ignored=(255, (0, 0, 0)))
        pixels = np.array([[[1, 2, 3], [0, 0, 0]]], dtype=np.uint8)
        assert decode_mask(Mask(source=pixels, palette=palette), ["sky"]).tolist() == [[0, 255]]


class TestTurns:
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_a_mask_turns_as_the_image_does(self, tmp_path: Path, orientation: int) -> None:
        from headstart.data.images import decode

        buffer = io.BytesIO()
        Image.fromarray(GRID).save(buffer, "PNG", exif=exif(orientation))
        as_image = decode(buffer.getvalue())[:, :, 0]
        own = save(tmp_path, Image.fromarray(GRID), exif=exif(orientation))
        plain = save(tmp_path, Image.fromarray(GRID), "plain.png")
        (tmp_path / "image.png").write_bytes(buffer.getvalue())
        turn = mask_orientation(plain, tmp_path / "image.png")
        assert turn == (orientation if orientation > 4 else 1)
        assert mask_orientation(own, tmp_path / "image.png") == 1
        np.testing.assert_array_equal(read_raw_mask(tmp_path / "m.png").values, as_image)
        by_hand = decode_mask(plain, CODES.names, orientation=orientation)
        np.testing.assert_array_equal(by_hand, decode_mask(own, CODES.names))

    def test_a_mask_of_the_image_as_shown_stays(self, tmp_path: Path) -> None:
        Image.fromarray(GRID).save(tmp_path / "p.png", exif=exif(6))
        mask = save(tmp_path, Image.fromarray(np.ascontiguousarray(GRID.T)))
        assert mask_orientation(mask, tmp_path / "p.png") == 1
        assert mask_orientation(Mask(source=GRID, palette=CODES), tmp_path / "p.png") == 6


class TestRefused:
    def test_unknown_values_are_named(self, tmp_path: Path) -> None:
        grid = GRID.copy()
        grid[0, :3] = 77
        with pytest.raises(DataError, match=r"m\.png.*77 \(3 pixels\).*classes\.txt"):
            decode_mask(save(tmp_path, Image.fromarray(grid)), CODES.names)

    def test_unknown_colours_are_named(self) -> None:
        pixels = np.full((1, 2, 3), (1, 2, 3), dtype=np.uint8)
        with pytest.raises(DataError, match=r"#010203 \(2 pixels\)"):
            decode_mask(Mask(source=pixels, palette=COLOURS), COLOURS.names)
        with pytest.raises(DataError, match=r"#010203 \(2 pixels\)"):  # numbers were expected
            decode_mask(Mask(source=pixels, palette=CODES), CODES.names)

    @pytest.mark.parametrize("value", [-1, 70000])
    def test_numbers_out_of_range(self, value: int) -> None:
        with pytest.raises(DataError, match=rf"got {value} \(1 pixels\)"):
            decode_mask(Mask(source=np.array([[0, value]]), palette=CODES), CODES.names)

    def test_jpeg_unless_exact(self, tmp_path: Path) -> None:
        rough = Image.fromarray(np.where(EXPECTED == 2, 11, 0).astype(np.uint8))
        with pytest.raises(DataError, match="JPEG, which alters values"):
            decode_mask(save(tmp_path, rough, "m.jpg", quality=30), CODES.names)
        flat = save(tmp_path, Image.fromarray(np.full((8, 8), 1, np.uint8)), "f.jpg", quality=100)
        assert (decode_mask(flat, CODES.names) == 1).all()

    def test_a_class_that_is_not_asked_for(self) -> None:
        mask = Mask(source=np.array([[0, 1]]), palette=CODES)
        with pytest.raises(UnknownNameError, match="road"):
            decode_mask(mask, ["sky", "car"])
        assert decode_mask(Mask(source=np.array([[0]]), palette=CODES), ["sky"]).tolist() == [[0]]

    def test_damaged_files(self, tmp_path: Path) -> None:
        path = tmp_path / "m.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 9, (64, 64), dtype=np.uint8)).save(
            path
        )
        path.write_bytes(path.read_bytes()[:-900])
        with pytest.raises(UnreadableImageError, match=r"m\.png.*damaged"):
            decode_mask(Mask(source=path, palette=CODES), CODES.names)
        with pytest.raises(UnreadableImageError, match=r"gone\.png.*no such file"):
            read_raw_mask(tmp_path / "gone.png")

    def test_floating_point_files(self, tmp_path: Path) -> None:
        Image.fromarray(np.zeros((2, 2), dtype=np.float32)).save(tmp_path / "m.tif")
        with pytest.raises(UnreadableImageError, match=r"m\.tif.*cannot be codes"):
            read_raw_mask(tmp_path / "m.tif")

    @pytest.mark.parametrize(
        "array", [np.zeros((2, 2)), np.zeros((1, 2, 2), int), np.zeros((0, 2), int)]
    )
    def test_arrays_that_are_no_masks(self, array: NDArray[np.float64]) -> None:
        with pytest.raises(DataError, match="whole numbers"):
            read_raw_mask(array)

    def test_too_many_classes(self) -> None:
        palette = Palette(codes=tuple((i, str(i)) for i in range(255)))
        with pytest.raises(DataError, match="at most 254"):
            decode_mask(Mask(source=np.zeros((1, 1), int), palette=palette), palette.names)


def test_counts() -> None:
    counts = class_counts(EXPECTED, 4)
    assert counts.tolist() == [(v == EXPECTED).sum() for v in (0, 1, 2, 3, 255)]
