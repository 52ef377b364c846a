"""The same image as a file, its bytes, an array and a PIL image: the same prediction."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Dataset, Sample
from headstart.data.pixel_values import ImageOptions
from headstart.models.build import create_model
from headstart.models.heads.linear import LinearHead


@pytest.fixture(scope="module")
def model():
    samples = tuple(Sample(image=np.zeros((9, 9), np.uint8), target=name) for name in "ab")
    made = create_model(
        FrozenBackbone.open("embedded/efficientnet_lite0"),
        Dataset(samples=samples, classes=("a", "b")),
    )
    head = LinearHead.random(made.backbone.width, 2, seed=0)
    return type(made)(backbone=made.backbone, task=made.task, head=head, engine="fp32")


def photo(width, height, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


SIZES = [(300, 200), (640, 480), (1100, 1000), (1600, 1200), (2048, 1536), (1030, 4000)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", [{}, {"progressive": True, "subsampling": 0}], ids=str)
def test_a_jpeg_as_file_bytes_array_and_pil_image(model, size, options, tmp_path):
    path = tmp_path / "1.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(*size).save(path, quality=90, exif=exif, **options)
    with Image.open(path) as image:
        array = np.asarray(ImageOps.exif_transpose(image))
    with Image.open(path) as image:
        sources = [path, path.read_bytes(), array, image]
        predictions = model.predict(sources, cache=Cache(tmp_path / "cache"))
    values = np.array([list(one.probabilities.values()) for one in predictions])
    assert np.abs(values - values[0]).max() < 1e-3


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_options_of_the_record_decode_the_images(model, bits, tmp_path):
    """An image with fewer bits is predicted as the same image with all 16, if the model knows."""
    deep = np.asarray(photo(60, 50).convert("L")).astype(np.uint16) << (bits - 8)
    record = {"image_options": ImageOptions(bits=bits).as_dict()}
    fitted = type(model)(
        backbone=model.backbone, task=model.task, head=model.head, engine="fp32", record=record
    )
    assert fitted.image_options.bits == bits
    cache = Cache(tmp_path / "cache")
    (as_trained,) = fitted.predict(deep, cache=cache)
    (full,) = model.predict(np.rint(deep * (65535 / (2**bits - 1))).astype(np.uint16), cache=cache)
    assert as_trained.probability == pytest.approx(full.probability, abs=1e-3)


def test_max_pixels_is_for_one_call(model, tmp_path):
    buffer = io.BytesIO()
    photo(60, 50).save(buffer, "PNG")
    cache = Cache(tmp_path / "cache")
    with pytest.raises(Exception, match="--max-pixels 3000"):
        model.predict(buffer.getvalue(), cache=cache, max_pixels=2999)
    assert len(model.predict(buffer.getvalue(), cache=cache, max_pixels=3000)) == 1
    assert len(model.predict(buffer.getvalue(), cache=cache)) == 1
