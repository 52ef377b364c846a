"""DICOM images of the first frame as 8-bit RGB, by pydicom.

Only the elements in `_KEYWORDS` are read. Of the personal ones this is the patient's id alone,
which becomes a keyed hash whose key exists in this process only.
"""

from __future__ import annotations

import io
import re
import secrets
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.data.pixel_values import ImageOptions, Pixels, grey_to_rgb, scale_to_8_bits
from headstart.errors import MissingExtraError, UnreadableImageError

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["DicomHeader", "decode_dicom", "is_dicom", "patient_hash", "read_dicom_header"]

# fmt: off
_KEYWORDS = [
    "SOPClassUID", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PlanarConfiguration",
    "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth",
    "VOILUTFunction", "VOILUTSequence", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData", "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData", "SegmentedBluePaletteColorLookupTableData",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData", "FloatPixelData",
    "DoubleFloatPixelData",
]
# fmt: on
_PATIENT = ["PatientID", "IssuerOfPatientID"]
_PACKAGES = {  # that decode a compression, if pydicom cannot
    "1.2.840.10008.1.2.4.51": "pylibjpeg pylibjpeg-libjpeg",
    "1.2.840.10008.1.2.4.57": "pylibjpeg pylibjpeg-libjpeg",
    "1.2.840.10008.1.2.4.70": "pylibjpeg pylibjpeg-libjpeg",
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.4.201": "pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.202": "pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg pylibjpeg-openjpeg",
}
_COLOURS = frozenset(
    [
        "MONOCHROME1",
        "MONOCHROME2",
        "PALETTE COLOR",
        "RGB",
        "YBR_FULL",
        "YBR_FULL_422",
        "YBR_PARTIAL_420",
        "YBR_ICT",
        "YBR_RCT",
    ]
)
_MAGIC_AT = 128
_SECRET = secrets.token_bytes(32)
_LOCK = threading.Lock()  # pydicom's settings and Python's warnings are shared by all threads


class DicomHeader(NamedTuple):
    """Size of a DICOM image, its colour and bits, and its number of frames."""

    width: int
    height: int
    mode: str
    n_frames: int


def is_dicom(data: bytes) -> bool:
    r"""Whether the bytes of a file start as DICOM: 128 bytes of any value, then ``DICM``.

    >>> is_dicom(bytes(128) + b"DICM"), is_dicom(b"DICM")
    (True, False)
    """
    return data[_MAGIC_AT : _MAGIC_AT + 4] == b"DICM"


def read_dicom_header(data: bytes) -> DicomHeader:
    """Read size, mode and number of frames of a DICOM image.

    Raises
    ------
    UnreadableImageError
        If the file has no image; the message is the reason.
    MissingExtraError
        If pydicom is not installed.
    """
    with _quiet_pydicom():
        return _header_of(_read(data, _KEYWORDS, with_pixels=False))


def patient_hash(data: bytes) -> str | None:
    """Hash of the patient's id in a DICOM file; None if it has none or pydicom is missing.

    The same patient has the same hash in this process, and another one in the next: the id cannot
    be found by trying ids.

    Examples
    --------
    >>> patient_hash(b"no DICOM") is None
    True
    """
    if not is_dicom(data):
        return None
    try:
        with _quiet_pydicom():
            dataset = _read(data, _PATIENT, with_pixels=False)
            parts = [_raw_text(dataset, keyword) for keyword in _PATIENT]
    except (UnreadableImageError, MissingExtraError):  # decoding raises it with its reason
        return None
    if not parts[0]:
        return None
    return blake2b(b"\0".join(parts), key=_SECRET, digest_size=16).hexdigest()


def decode_dicom(data: bytes, options: ImageOptions) -> tuple[DicomHeader, Pixels]:
    """Decode the first frame of a DICOM image to 8-bit RGB.

    Grey values are rescaled (slope and intercept, or modality LUT), then windowed: by
    ``options.window``, or by the VOI LUT or the first window of the file, or else from the
    smallest to the largest value that the file can store. MONOCHROME1 is inverted.

    Parameters
    ----------
    data : bytes
        Content of the file.
    options : ImageOptions

    Returns
    -------
    DicomHeader
    array
        Shape (H, W, 3), uint8.

    Raises
    ------
    UnreadableImageError
        If the image cannot be decoded; the message is the reason.
    MissingExtraError
        If pydicom is not installed.

    Reference
    ---------
    DICOM PS3.3, C.11.1 (modality LUT) and C.11.2 (VOI LUT).
    """
    with _quiet_pydicom():
        dataset = _read(data, _KEYWORDS)
        header = _header_of(dataset)
        options.require_pixels(header.width, header.height)
        values, colours = _stored_values(dataset)
        if colours is not None:
            return header, colours
        try:
            fractions = _windowed(_rescaled(values, dataset), dataset, options)
        except UnreadableImageError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            raise _damaged(error) from None
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        fractions = 1 - fractions
    return header, grey_to_rgb(scale_to_8_bits(fractions, 1))


@contextmanager
def _quiet_pydicom() -> Iterator[None]:
    """Keep pydicom from writing warnings, which quote values of the file."""
    try:
        from pydicom import config
    except ImportError:
        raise MissingExtraError("pydicom", extra="medical") from None
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mode = config.settings.reading_validation_mode
        config.settings.reading_validation_mode = config.IGNORE
        try:
            yield
        finally:
            config.settings.reading_validation_mode = mode


def _damaged(error: Exception) -> UnreadableImageError:
    """Error without the text of pydicom's, which may quote personal values."""
    return UnreadableImageError(f"damaged DICOM data, {type(error).__name__} (replace the file)")


def _read(data: bytes, keywords: list[str], *, with_pixels: bool = True) -> Dataset:
    from pydicom import dcmread

    try:
        return dcmread(
            io.BytesIO(data), specific_tags=list(keywords), stop_before_pixels=not with_pixels
        )
    except Exception as error:  # noqa: BLE001 - pydicom raises anything on damaged data
        raise _damaged(error) from None


def _raw_text(dataset: Dataset, keyword: str) -> bytes:
    """Bytes of a text element as stored, without the spaces and zeros that fill it."""
    element = dataset.get_item(keyword)
    value = b"" if element is None else element.value
    raw = value if isinstance(value, bytes) else str(value or "").encode()
    return raw.strip(b" \0")


def _name_of(identifier: Any) -> str:
    """Name of a class or transfer syntax; a damaged one may hold values of other elements."""
    text = str(identifier)
    if not re.fullmatch(r"[0-9.]{1,64}", text):
        return "of unknown kind"
    name = str(getattr(identifier, "name", text))
    return text if name == text else f"{name}, {text}"


def _header_of(dataset: Dataset) -> DicomHeader:
    if "Rows" not in dataset or "Columns" not in dataset:
        kind = _name_of(dataset.get("SOPClassUID"))
        raise UnreadableImageError(f"a DICOM file without an image, {kind} (remove it)")
    try:
        width, height = int(dataset.Columns), int(dataset.Rows)
        n_frames = max(1, int(dataset.get("NumberOfFrames") or 1))
        colours = re.sub("[^A-Z0-9_ ]", "", str(dataset.get("PhotometricInterpretation")))
        mode = f"{colours};{int(dataset.BitsStored)}" if colours in _COLOURS else "unknown"
    except Exception as error:  # noqa: BLE001 - as above
        raise _damaged(error) from None
    if not (width and height):
        raise UnreadableImageError(f"a DICOM image of {width} x {height} pixels (remove it)")
    return DicomHeader(width, height, mode, n_frames)


def _stored_values(dataset: Dataset) -> tuple[NDArray[Any], Pixels | None]:
    """Values of the first frame, and for colour images its RGB."""
    from pydicom.pixels.processing import apply_color_lut

    syntax = dataset.file_meta.get("TransferSyntaxUID")
    decoder = _decoder_of(syntax)
    try:
        values, properties = decoder(dataset, index=0)
        if properties["photometric_interpretation"] == "PALETTE COLOR":
            values = apply_color_lut(values, dataset)
            white = 65535 if values.dtype == np.uint16 else 255
        elif values.ndim == 2:
            return values, None
        else:
            white = (1 << int(dataset.BitsStored)) - 1
        pixels = values if white == 255 else scale_to_8_bits(values, white)
        return values, np.array(pixels, np.uint8, order="C")
    except NotImplementedError:
        raise _undecodable(syntax) from None
    except Exception as error:  # noqa: BLE001 - as above
        raise _damaged(error) from None


def _decoder_of(syntax: Any) -> Callable[..., Any]:
    from pydicom.pixels.decoders.base import get_decoder

    if syntax is None:
        raise UnreadableImageError(
            f"a DICOM file whose transfer syntax is {syntax} (save it again)"
        )
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise _undecodable(syntax) from None
    if not decoder.is_available:
        raise _undecodable(syntax)
    return decoder.as_array


def _undecodable(syntax: Any) -> UnreadableImageError:
    package, name = _PACKAGES.get(str(syntax)), _name_of(syntax)
    reason = f"a DICOM image whose transfer syntax pydicom does not decode here: {name}"
    if package is None:
        return UnreadableImageError(f"{reason} (save it without compression)")
    return UnreadableImageError(f"{reason} (run pip install {package})")


def _find(dataset: Dataset, keyword: str, group: str) -> Any:
    """Value of an element in the file, or in the groups of its first frame or of all frames."""
    if keyword in dataset:
        return dataset[keyword].value
    for sequence in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for frame in (dataset.get(sequence) or ())[:1]:
            for item in (frame.get(group) or ())[:1]:
                if keyword in item:
                    return item[keyword].value
    return None


def _scale(dataset: Dataset) -> tuple[float, float]:
    group = "PixelValueTransformationSequence"
    slope, intercept = (
        _find(dataset, keyword, group) for keyword in ("RescaleSlope", "RescaleIntercept")
    )
    return (
        1.0 if slope is None else float(slope),
        0.0 if intercept is None else float(intercept),
    )


def _rescaled(values: NDArray[Any], dataset: Dataset) -> NDArray[Any]:
    from pydicom.pixels.processing import apply_modality_lut

    if dataset.get("ModalityLUTSequence"):
        return apply_modality_lut(values, dataset)
    slope, intercept = _scale(dataset)
    return values.astype(np.float64) * slope + intercept


def _value_range(dataset: Dataset) -> tuple[float, float]:
    """Smallest and largest value after rescaling that the bits of the file can store."""
    if dataset.get("ModalityLUTSequence"):
        return 0.0, float(2 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1)
    bits = int(dataset.BitsStored)
    low = -(2 ** (bits - 1)) if dataset.get("PixelRepresentation") else 0
    slope, intercept = _scale(dataset)
    ends = sorted(value * slope + intercept for value in (low, low + 2**bits - 1))
    return ends[0], ends[1]


def _windowed(values: NDArray[Any], dataset: Dataset, options: ImageOptions) -> NDArray[np.float64]:
    """Fractions from black, 0, to white, 1."""
    from pydicom.pixels.processing import apply_voi

    window, function = options.window_numbers, "LINEAR"
    if window is None:
        if lut := dataset.get("VOILUTSequence"):
            white = 2 ** int(lut[0].LUTDescriptor[2]) - 1
            looked_up = apply_voi(np.rint(values).astype(np.int32), dataset, index=0)
            fractions: NDArray[np.float64] = looked_up.astype(np.float64) / white
            return fractions
        window, function = _stored_window(dataset)
    if window is None:
        low, high = _value_range(dataset)
        return (values - low) / ((high - low) or 1)
    return _apply_window(values, *window, function)


def _stored_window(dataset: Dataset) -> tuple[tuple[float, float] | None, str]:
    """First window of the file, and its function."""
    numbers = []
    for keyword in ("WindowCenter", "WindowWidth"):
        value = _find(dataset, keyword, "FrameVOILUTSequence")
        first = value[0] if isinstance(value, list | tuple) or hasattr(value, "append") else value
        numbers.append(None if first is None else float(first))
    if numbers[0] is None or numbers[1] is None:
        return None, "LINEAR"
    function = _find(dataset, "VOILUTFunction", "FrameVOILUTSequence") or "LINEAR"
    return (numbers[0], numbers[1]), str(function).upper()


def _apply_window(
    values: NDArray[Any], center: float, width: float, function: str
) -> NDArray[np.float64]:
    smallest = 1 if function == "LINEAR" else 0
    if not (width >= smallest and width > 0):
        raise UnreadableImageError(
            f"a DICOM image with a window of width {width:g} (pass --window CENTER,WIDTH)"
        )
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if width == 0:
        return (values > center).astype(np.float64)
    return np.clip((values - center) / width + 0.5, 0, 1)
