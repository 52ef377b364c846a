"""Bands from training to prediction: the same pixels, in any run."""

import io

import numpy as np
import tifffile

from headstart import fit, load
from headstart.cache import Cache
from headstart.data.images import ImageOptions, decode
from headstart.workflows.evaluate import evaluate_model


def write(path, kind, seed):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:40, :40]
    step, shift = rng.integers(3, 8), rng.integers(0, 9)
    x, y = (x + shift) // step, (y + 2 * shift) // step
    mask = x % 2 if kind == "fields" else (x + y) % 2
    values = rng.normal(2000, 90, (40, 40, 6)) + 300 * mask[:, :, None] * np.array(
        [0, 1, 2, 1, 0, 0]
    )
    values[:5] = -9999
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        values.astype(np.int16),
        photometric="minisblack",
        planarconfig="contig",
        extratags=[(42113, "s", 0, "-9999", True)],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())


def test_a_prediction_reads_the_bands_of_the_training(tmp_path):
    for i in range(8):
        for kind in ("fields", "town"):
            write(tmp_path / "tiles" / kind / f"{i}.tif", kind, i + 50 * (kind == "town"))
    settings = {"bands": "4,3,2", "band_range": "1%,99%"}
    cache = Cache()
    run = fit(
        tmp_path / "tiles",
        method="linear-probe",
        engine="fp32",
        device="cpu",
        out=tmp_path / "run",
        cache=cache,
        progress=False,
        **settings,
    )
    model = load(tmp_path / "run")
    assert model.image_options == ImageOptions(**settings)
    path = tmp_path / "tiles" / "town" / "3.tif"
    (by_path,) = model.predict([path])
    values = tifffile.imread(path).astype(np.float32)
    values[values == -9999] = np.nan
    (by_array,) = model.predict(values)
    assert by_path.probabilities == by_array.probabilities
    np.testing.assert_array_equal(
        decode(path, options=model.image_options), decode(values, options=model.image_options)
    )
    evaluated = evaluate_model(run.folder, tmp_path / "tiles", cache=cache, allow_overlap=True)
    row = [*evaluated.evaluation.names].index(str(path))
    np.testing.assert_allclose(
        evaluated.evaluation.probabilities[row], [*by_path.probabilities.values()], atol=1e-6
    )
