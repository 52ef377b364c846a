"""DICOM: values against pydicom's own functions, and what is refused."""

import io
import logging
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from headstart.data.dicom import is_dicom, patient_hash
from headstart.data.images import (
    ImageOptions,
    decode,
    decode_file,
    digest,
    read_header,
    unreadable_reason,
)
from headstart.errors import MissingExtraError, UnreadableImageError, UsageError

RAMP = np.arange(48, dtype=np.uint16).reshape(6, 8)


def dicom(values, *, bits=16, syntax=ExplicitVRLittleEndian, signed=False, **elements):
    """Bytes of a DICOM file with personal fields, written by pydicom."""
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = CTImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = "1.2.3.4"
    file.PatientName, file.PatientID = "Nemo^Captain", "MRN-20000"
    file.PatientBirthDate = "18280208"
    colour = values.ndim > 2 and values.shape[-1] == 3
    file.Rows, file.Columns = values.shape[-3:-1] if colour else values.shape[-2:]
    if values.ndim == 3 + colour:
        file.NumberOfFrames = len(values)
    file.SamplesPerPixel = 3 if colour else 1
    if colour:
        file.PlanarConfiguration = 0
    file.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    file.BitsAllocated = 8 * values.itemsize
    file.BitsStored, file.HighBit = bits, bits - 1
    file.PixelRepresentation = int(signed)
    for keyword, value in elements.items():
        setattr(file, keyword, value)
    file.PixelData = values.tobytes()
    if syntax == RLELossless:
        file.compress(RLELossless)
    elif syntax != ExplicitVRLittleEndian:
        file.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            file.PixelData = values.astype(values.dtype.newbyteorder(">")).tobytes()
    buffer = io.BytesIO()
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    file.save_as(
        buffer,
        enforce_file_format=True,
        implicit_vr=implicit if syntax.is_transfer_syntax else None,
        little_endian=little,
    )
    return buffer.getvalue()


def shown_by_pydicom(data):
    """Grey levels that pydicom's pixel_array, modality LUT and VOI LUT give, in 8 bits."""
    file = pydicom.dcmread(io.BytesIO(data))
    values = apply_voi_lut(apply_modality_lut(file.pixel_array, file), file)
    low, high = 0, 2**file.BitsStored - 1
    if file.PixelRepresentation:
        low, high = -(2 ** (file.BitsStored - 1)), 2 ** (file.BitsStored - 1) - 1
    if "VOILUTSequence" in file:
        low, high = 0, 2 ** file.VOILUTSequence[0].LUTDescriptor[2] - 1
    elif "ModalityLUTSequence" in file:
        low, high = 0, 2 ** file.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    elif "RescaleSlope" in file:
        ends = [v * file.RescaleSlope + file.RescaleIntercept for v in (low, high)]
        low, high = min(ends), max(ends)
    fractions = (values.astype(np.float64) - low) / (high - low)
    if file.PhotometricInterpretation == "MONOCHROME1":
        fractions = 1 - fractions
    return np.rint(fractions * 255)


def lut(values, bits=8, first=0):
    table = Dataset()
    table.LUTDescriptor = [len(values), first, bits]
    table.LUTData = np.asarray(values, np.uint16).tobytes()
    return table


def near(pixels, expected):
    """Equal to one level: 8-bit roundings of the same number at its middle may differ."""
    assert pixels.dtype == np.uint8
    assert pixels.shape == (*expected.shape, 3)
    assert np.ptp(pixels.astype(int), axis=2).max() == 0
    assert np.abs(pixels[:, :, 0] - expected).max() <= 1


CT = {"RescaleSlope": 1, "RescaleIntercept": -1024}


@pytest.mark.parametrize(
    ("values", "elements"),
    [
        (RAMP * 85, {"bits": 12}),
        (RAMP * 1394, {}),
        (RAMP.astype(np.uint8) * 5, {"bits": 8}),
        (RAMP * 85, {"bits": 12, "PhotometricInterpretation": "MONOCHROME1"}),
        (RAMP.astype(np.int16) * 80 - 1900, {"bits": 12, "signed": True}),
        (RAMP * 60, {"bits": 12, "WindowCenter": 1500, "WindowWidth": 900, **CT}),
        (RAMP * 60, {"bits": 12, "WindowCenter": [40, 500], "WindowWidth": [400, 90], **CT}),
        (RAMP * 60, {"bits": 12, "WindowCenter": "40.5", "WindowWidth": "1", **CT}),
        (
            RAMP * 60,
            {"bits": 12, "WindowCenter": 4, "WindowWidth": 7, "VOILUTFunction": "LINEAR_EXACT"},
        ),
        (
            RAMP * 60,
            {"bits": 12, "WindowCenter": 900, "WindowWidth": 700, "VOILUTFunction": "SIGMOID"},
        ),
        (RAMP * 60, {"bits": 12, "RescaleSlope": "2.5", "RescaleIntercept": "-7.25"}),
        (
            RAMP * 60,
            {
                "bits": 12,
                "WindowCenter": 40,
                "WindowWidth": 400,
                "PhotometricInterpretation": "MONOCHROME1",
                **CT,
            },
        ),
        (RAMP.astype(np.int16) - 20, {"signed": True, "WindowCenter": 3, "WindowWidth": 30}),
        (RAMP, {"VOILUTSequence": [lut(np.arange(48)[::-1] * 5)]}),
        (RAMP, {"VOILUTSequence": [lut(np.arange(48) * 80, bits=12)]}),
        (RAMP, {"ModalityLUTSequence": [lut(np.arange(48) ** 2, bits=16)]}),
        (
            RAMP,
            {
                "ModalityLUTSequence": [lut(np.arange(48) * 5)],
                "WindowCenter": 100,
                "WindowWidth": 90,
            },
        ),
        (RAMP * 85, {"bits": 12, "syntax": ImplicitVRLittleEndian}),
        (RAMP * 85, {"bits": 12, "syntax": ExplicitVRBigEndian}),
        (RAMP * 85, {"bits": 12, "syntax": RLELossless}),
    ],
)
def test_grey_values_are_those_of_pydicom(values, elements):
    data = dicom(values, **elements)
    near(decode(data), shown_by_pydicom(data))


def test_a_negative_slope_by_hand():
    data = dicom(RAMP, bits=12, RescaleSlope=-1, RescaleIntercept=0)
    near(decode(data), np.rint((4095 - RAMP.astype(float)) / 4095 * 255))


@pytest.mark.parametrize("window", ["100,200", "100, 200", "1e2,2e2"])
def test_a_named_window_replaces_that_of_the_file(window):
    data = dicom(RAMP * 60, bits=12, WindowCenter=40, WindowWidth=400, **CT)
    named = dicom(RAMP * 60, bits=12, WindowCenter=100, WindowWidth=200, **CT)
    options = ImageOptions(window=window)
    np.testing.assert_array_equal(decode(data, options=options), decode(named))
    assert np.any(decode(data) != decode(named))
    assert digest(data, options) != digest(data)
    with_lut = dicom(RAMP * 60, bits=12, VOILUTSequence=[lut(np.arange(48))], **CT)
    np.testing.assert_array_equal(decode(with_lut, options=options), decode(named))


@pytest.mark.parametrize(
    "window", ["40", "40,0", "40,0.5", "40,-400", "40,400,1", "a,b", "nan,9", 40]
)
def test_a_window_that_is_none(window):
    with pytest.raises(UsageError, match="--window CENTER,WIDTH"):
        ImageOptions(window=window)


def test_frames_groups_of_an_enhanced_file():
    """Of an enhanced file, slope and window are in the groups of its frames."""
    shared, first, second = Dataset(), Dataset(), Dataset()
    shared.PixelValueTransformationSequence = [Dataset()]
    shared.PixelValueTransformationSequence[0].RescaleSlope = 1
    shared.PixelValueTransformationSequence[0].RescaleIntercept = -1024
    for frame, center in ((first, 40), (second, 900)):
        frame.FrameVOILUTSequence = [Dataset()]
        frame.FrameVOILUTSequence[0].WindowCenter = center
        frame.FrameVOILUTSequence[0].WindowWidth = 400
    data = dicom(
        np.stack([RAMP * 60, RAMP]),
        bits=12,
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=[first, second],
    )
    plain = dicom(RAMP * 60, bits=12, WindowCenter=40, WindowWidth=400, **CT)
    np.testing.assert_array_equal(decode(data), decode(plain))
    assert read_header(data).n_frames == 2
    assert decode_file(data, count_frames=True)[0].n_frames == 2


def test_colours():
    rgb = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode(dicom(rgb, bits=8)), rgb)
    planes = dicom(rgb.transpose(2, 0, 1).copy().reshape(6, 8, 3), bits=8, PlanarConfiguration=1)
    np.testing.assert_array_equal(decode(planes), rgb)
    ybr = dicom(rgb, bits=8, PhotometricInterpretation="YBR_FULL")
    expected = pydicom.dcmread(io.BytesIO(ybr))
    np.testing.assert_array_equal(
        decode(ybr), pydicom.pixels.convert_color_space(expected.pixel_array, "RGB", "RGB")
    )
    deep = dicom(rgb.astype(np.uint16) * 257)
    np.testing.assert_array_equal(decode(deep), rgb)


def test_palettes():
    table = np.arange(48, dtype=np.uint8)[::-1].tobytes()
    elements = {}
    for colour in ("Red", "Green", "Blue"):
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [48, 0, 8]
        elements[f"{colour}PaletteColorLookupTableData"] = table
    data = dicom(
        RAMP.astype(np.uint8), bits=8, PhotometricInterpretation="PALETTE COLOR", **elements
    )
    near(decode(data), (47 - RAMP).astype(int))


@pytest.mark.parametrize(
    ("uid", "words"),
    [
        ("1.2.840.10008.1.2.4.51", "pip install pylibjpeg pylibjpeg-libjpeg"),
        ("1.2.840.10008.1.2.4.57", "JPEG Lossless, Non-Hierarchical"),
        ("1.2.840.10008.1.2.4.70", "pip install pylibjpeg pylibjpeg-libjpeg"),
        ("1.2.840.10008.1.2.4.80", "JPEG-LS Lossless Image Compression"),
        ("1.2.840.10008.1.2.4.81", "pip install pyjpegls"),
        ("1.2.840.10008.1.2.4.201", "pip install pylibjpeg pylibjpeg-openjpeg"),
        ("1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.202 (run pip"),
        ("1.2.840.10008.1.2.4.203", "High-Throughput JPEG 2000"),
        ("1.2.840.10008.1.2.4.100", "MPEG2"),
        ("1.2.840.10008.1.2.4.102", "save it without compression"),
        ("1.2.840.10008.1.2.4.94", "JPIP"),
    ],
)
def test_compressions_that_cannot_be_decoded(uid, words, monkeypatch):
    from pydicom.pixels.decoders import base

    decoder = base.get_decoder
    missing = SimpleNamespace(is_available=False)
    monkeypatch.setattr(
        base, "get_decoder", lambda name: missing if decoder(name) and name == uid else None
    )
    data = _with_syntax(uid)
    with pytest.raises(UnreadableImageError) as error:
        decode(data)
    assert words in unreadable_reason(error.value)
    assert uid in unreadable_reason(error.value)


def _with_syntax(uid):
    file = pydicom.dcmread(io.BytesIO(dicom(RAMP)))
    file.file_meta.TransferSyntaxUID = UID(uid)
    file.PixelData = pydicom.encaps.encapsulate([bytes(64)])
    file["PixelData"].VR = "OB"
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_files_without_an_image():
    file = pydicom.dcmread(io.BytesIO(dicom(RAMP)))
    del file.PixelData, file.Rows, file.Columns
    buffer = io.BytesIO()
    file.save_as(buffer)
    with pytest.raises(UnreadableImageError, match="without an image"):
        read_header(buffer.getvalue())
    with pytest.raises(UnreadableImageError, match="damaged DICOM data"):
        decode(dicom(RAMP)[:-40])
    with pytest.raises(UnreadableImageError, match="window of width 0"):
        decode(dicom(RAMP, WindowCenter=4, WindowWidth=0))
    with pytest.raises(UnreadableImageError, match="--max-pixels 48 allows it"):
        decode(dicom(RAMP), options=ImageOptions(max_pixels=47))


@pytest.mark.parametrize("step", [7, 61])
def test_damaged_files_name_no_personal_value(step):
    whole = dicom(RAMP, bits=12, WindowCenter="40", WindowWidth="400", **CT)
    for at in range(132, len(whole), step):
        data = bytearray(whole)
        data[at] ^= 0x5A
        told = ""
        with suppress(UnreadableImageError):
            told = str(decode_file(bytes(data))[0])
        try:
            decode(bytes(data))
        except UnreadableImageError as error:
            told += str(error) + repr(error.__cause__)
        assert not any(word in told for word in ("Nemo", "MRN-20000", "18280208"))


def test_without_pydicom(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'headstart\[medical\]'"):
        decode(dicom_bytes)
    assert patient_hash(dicom_bytes) is None


dicom_bytes = dicom(RAMP)


def test_the_hash_of_a_patient(caplog):
    caplog.set_level(logging.DEBUG)
    one = patient_hash(dicom(RAMP))
    assert one == patient_hash(dicom(RAMP * 3, PatientName="Other^Name", PatientID="MRN-20000 "))
    others = [
        patient_hash(dicom(RAMP, PatientID="MRN-20001")),
        patient_hash(dicom(RAMP, IssuerOfPatientID="Nautilus")),
    ]
    assert len({one, *others}) == 3
    assert len(one) == 32
    assert patient_hash(dicom(RAMP, PatientID="")) is None
    too_long = dicom(RAMP).replace(b"LO\x0a\x00MRN-20000 ", b"LO\x50\x00" + b"x" * 80)
    assert patient_hash(too_long) is not None
    assert "MRN" not in caplog.text
    assert is_dicom(dicom_bytes)
