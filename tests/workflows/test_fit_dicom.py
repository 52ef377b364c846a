"""DICOM from training to prediction: the same window, and no personal field anywhere."""

import numpy as np
import pytest
from tests.data.test_dicom import dicom
from typer.testing import CliRunner

from headstart.cli.app import app
from headstart.data.images import ImageOptions, decode
from headstart.models.saving import load

PERSONAL = ("Nemo", "Captain", "MRN-2", "18280208", "1828-02-08")


def scan(kind, seed):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:48, :48]
    mask = (x // 5) % 2 if kind == "ill" else ((x // 5) + (y // 5)) % 2
    return (1000 + 120 * mask + rng.normal(0, 9, mask.shape)).astype(np.uint16)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run on 16 files of 8 patients, and everything that it wrote."""
    root = tmp_path_factory.mktemp("dicom")
    for i in range(8):
        for kind in ("ill", "well"):
            path = root / "scans" / kind / f"{i}{'.dcm' if i % 2 else ''}"
            path.parent.mkdir(parents=True, exist_ok=True)
            content = dicom(
                scan(kind, i + 100 * (kind == "ill")),
                bits=12,
                PatientID=f"MRN-2{i % 4}{kind}",
                RescaleSlope=1,
                RescaleIntercept=-1024,
            )
            path.write_bytes(content)
    out, cache = root / "run", root / "cache"
    flags = [
        "--method",
        "linear-probe",
        "--window",
        "40,200",
        "--engine",
        "fp32",
        "--out",
        str(out),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADSTART_CACHE", str(cache))
        text = CliRunner().invoke(app, ["fit", str(root / "scans"), *flags]).output
        one = root / "scans" / "ill" / "1.dcm"
        text += CliRunner().invoke(app, ["predict", str(out), str(one), "--json"]).output
        drawn = ["explain", str(out), str(one), "--out", str(root / "drawn")]
        text += CliRunner().invoke(app, drawn).output
        checked = ["data", "check", str(root / "scans"), "--out", str(root / "findings.csv")]
        text += CliRunner().invoke(app, checked).output
    return root, text


def test_no_personal_field_is_written_or_shown(done):
    root, text = done
    files = [path for path in root.rglob("*") if path.is_file() and "scans" not in path.parts]
    names = {path.name for path in files}
    assert {"model.json", "report.html", "log.jsonl", "findings.csv", "index.html"} <= names
    assert any("cache" in path.parts for path in files)
    for word in PERSONAL:
        assert word not in text
        assert not [path for path in files if word.encode() in path.read_bytes()]
    assert any(b"Nemo" in path.read_bytes() for path in (root / "scans").rglob("*.dcm"))


def test_a_prediction_reads_as_the_training_did(done):
    root, _ = done
    fitted = load(root / "run")
    assert fitted.image_options == ImageOptions(window="40,200")
    path = root / "scans" / "ill" / "1.dcm"
    pixels = decode(path, options=fitted.image_options)
    assert np.ptp(pixels) > 100  # without the window: a tenth of it
    assert np.ptp(decode(path)) < 30
    (by_path,), (by_array,) = fitted.predict([path]), fitted.predict(pixels)
    np.testing.assert_allclose(
        [*by_path.probabilities.values()], [*by_array.probabilities.values()], atol=1e-6
    )
