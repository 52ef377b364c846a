"""Patients of DICOM files as groups."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.data.test_dicom import dicom

from headstart.cache import Cache
from headstart.data.formats.layouts import is_dicom_file, list_folder
from headstart.data.prepare import inspect_dataset, prepare, to_samples
from headstart.data.readers import read_dataset
from headstart.errors import LayoutError, LeakError

RNG = np.random.default_rng(0)


def write(path, patient, **elements):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = RNG.integers(0, 4096, (24, 24), dtype=np.uint16)
    path.write_bytes(dicom(values, bits=12, PatientID=patient, **elements))


@pytest.fixture
def scans(tmp_path):
    """Two classes, eight patients of three images each; a third of the files have no suffix."""
    for patient in range(8):
        label = "healthy" if patient % 2 else "ill"
        for image, suffix in enumerate((".dcm", "", ".840")):
            write(tmp_path / "scans" / label / f"{patient}-{image}{suffix}", f"MRN-{patient}")
    return tmp_path / "scans"


def test_the_images_of_a_patient_stay_in_one_split(scans):
    prepared = prepare(scans, cache=Cache(), test_fraction=0.25)
    splits = {}
    for sample in prepared.data.samples:
        splits.setdefault(Path(sample.name).name[0], set()).add(sample.split)
    assert len(splits) == 8
    assert all(len(split) == 1 for split in splits.values())
    assert set.union(*splits.values()) == {"train", "test"}
    assert "groups: 8 patients, from the ids in the DICOM files" in prepared.data.notes
    again = prepare(scans, cache=Cache(), test_fraction=0.25)  # records from the cache
    assert [s.group for s in again.data.samples] == [s.group for s in prepared.data.samples]


def test_a_patient_in_two_splits_is_a_leak(tmp_path):
    for number, split in enumerate(("train", "train", "test")):
        for label in ("healthy", "ill"):
            write(tmp_path / "s" / split / label / f"{number}.dcm", f"{label}{number % 2}")
    with pytest.raises(LeakError, match="group 'patient 1' in train and test") as error:
        prepare(tmp_path / "s", cache=Cache())
    assert "healthy0" not in str(error.value)
    prepare(tmp_path / "s", cache=Cache(), allow_overlap=True)


def test_groups_of_the_user_come_first(scans):
    data, _ = inspect_dataset(scans, cache=Cache(), group_by=r"(\d)-")
    assert {sample.group for sample in data.samples} == {str(i) for i in range(8)}


def test_one_id_for_all_is_no_group(tmp_path):
    for label in ("healthy", "ill"):
        for i in range(3):
            write(tmp_path / "s" / label / f"{i}.dcm", "ANONYMOUS")
    data, _ = inspect_dataset(tmp_path / "s", cache=Cache())
    assert {sample.group for sample in data.samples} == {None}
    assert "groups: none, because all DICOM files have the same patient id" in data.notes


@pytest.mark.parametrize("name", ["IM000001", "1.2.840.113", "a.7", "I", "x y"])
def test_dicom_without_a_suffix_is_found(tmp_path, name):
    write(tmp_path / "scans" / name, "A")
    assert list_folder(tmp_path).images == (f"scans/{name}",)
    assert len(to_samples(tmp_path / "scans" / name)) == 1


@pytest.mark.parametrize("name", ["DICOMDIR", "dicomdir", "a.txt", "a.8b", "notes.md"])
def test_other_files_stay_other_files(tmp_path, name):
    write(tmp_path / "scans" / name, "A")
    assert list_folder(tmp_path).images == ()
    (tmp_path / "README").write_text("no image")
    assert not is_dicom_file(tmp_path / "README")
    with pytest.raises(LayoutError, match="none among its"):
        to_samples(tmp_path)


def test_a_python_list_of_paths(scans):
    paths = sorted(scans.glob("*/*"))
    data = read_dataset([(path, path.parent.name) for path in paths])
    assert data.counts() == {"healthy": 12, "ill": 12}
    _, findings = inspect_dataset(data, cache=Cache())
    assert not [finding for finding in findings if finding.severity == "error"]
    assert replace(data.samples[0], digest=None).image == paths[0]
