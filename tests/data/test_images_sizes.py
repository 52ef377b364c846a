"""The shown size: what the decoder's pixels have, of every kind of source."""

import io

import numpy as np
import pytest
from PIL import Image

from headstart.data.image_sizes import upright_size
from headstart.data.images import decode
from headstart.errors import UnreadableImageError


def jpeg(orientation: int) -> bytes:
    exif, out = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(out, "JPEG", exif=exif)
    return out.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_is_the_size_of_the_decoded_pixels(orientation, tmp_path):
    data = jpeg(orientation)
    (path := tmp_path / "a.jpg").write_bytes(data)
    shape = decode(data).shape[:2]
    assert shape == ((20, 30) if orientation < 5 else (30, 20))
    assert upright_size(data) == upright_size(path) == upright_size(str(path)) == shape
    assert upright_size(Image.open(path)) == shape


@pytest.mark.parametrize("shape", [(4, 7), (4, 7, 1), (4, 7, 3)], ids=str)
def test_arrays_are_shown_as_they_are(shape):
    assert upright_size(np.zeros(shape, np.uint8)) == (4, 7)


def test_refuses_what_is_no_image(tmp_path):
    with pytest.raises(UnreadableImageError, match="no such file"):
        upright_size(tmp_path / "none.png")
