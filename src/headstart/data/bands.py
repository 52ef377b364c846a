"""Bands of multi-band images as 8-bit RGB; TIFF files are read by tifffile."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.data import tiff
from headstart.data.orientation import EXIF_TRANSFORMS
from headstart.data.pixel_values import ImageOptions, Pixels
from headstart.errors import MissingExtraError, UnreadableImageError

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

__all__ = ["bands_to_rgb", "decode_bands"]

MOST_BYTES = 2**33  # of the decoded bands of one image


def decode_bands(data: bytes, options: ImageOptions) -> Pixels:
    """Decode the bands of a TIFF that ``options.bands`` names to upright 8-bit RGB.

    Bands are samples of a pixel, interleaved or in planes, or else the pages of the file.

    Parameters
    ----------
    data : bytes
        Content of the file.
    options : ImageOptions
        Its ``bands`` are set.

    Returns
    -------
    array
        Shape (H, W, 3), uint8; see `bands_to_rgb`.

    Raises
    ------
    UnreadableImageError
        If the file cannot be decoded or has fewer bands; the message is the reason.
    MissingExtraError
        If tifffile is not installed.
    """
    try:
        import tifffile
    except ImportError:
        raise MissingExtraError("tifffile", extra="satellite") from None
    tags = tiff.read_tags(data)
    kind = tiff.describe_tiff(data)
    if tags is None or kind is None:
        raise UnreadableImageError(f"a damaged TIFF header in {len(data)} bytes (replace it)")
    options.require_pixels(tags.first(256, 0), tags.first(257, 0))
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            values, no_data = _read_bands(file, options)
    except UnreadableImageError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        if "imagecodecs" in reason:
            reason = (
                f"a TIFF that needs the package imagecodecs (run pip install imagecodecs): {kind}"
            )
            raise UnreadableImageError(reason) from error
        raise UnreadableImageError(f"damaged TIFF data (replace it): {reason}") from error
    pixels = bands_to_rgb(values, options, no_data=no_data)
    if tags.first(tiff.PHOTOMETRIC, 1) == 0:
        pixels = 255 - pixels
    turn = EXIF_TRANSFORMS.get(tags.first(tiff.ORIENTATION, 1))
    return np.ascontiguousarray(turn(pixels)) if turn else pixels


def bands_to_rgb(
    values: NDArray[Any], options: ImageOptions, *, no_data: float | None = None
) -> Pixels:
    """Scale the bands that ``options.bands`` names from black to white.

    Every band is scaled on its own: from ``options.band_range``, or from two percentiles of its
    values in this image. Values that mean no data, and NaN and infinity, do not count and become
    black.

    Parameters
    ----------
    values : array
        Shape (H, W) or (H, W, bands), whole numbers or floating point.
    options : ImageOptions
        ``no_data`` replaces the argument.
    no_data : float, optional
        Value of pixels without data, from the file.

    Returns
    -------
    array
        Shape (H, W, 3), uint8; one band becomes three equal channels.

    Raises
    ------
    UnreadableImageError
        If there are fewer bands, or they are complex numbers.

    Examples
    --------
    >>> values = np.array([[[0, 5, 100], [-9, 5, 150], [50, 5, 200]]])
    >>> options = ImageOptions(bands="1", band_range="0,100", no_data=-9)
    >>> bands_to_rgb(values, options)[0, :, 0]
    array([  0,   0, 128], dtype=uint8)
    """
    layers = values[:, :, None] if values.ndim == 2 else values
    numbers = options.band_numbers
    if layers.dtype.kind not in "uifb":
        raise UnreadableImageError(
            f"bands of {layers.dtype}, which are no real numbers (convert them)"
        )
    if max(numbers) > layers.shape[2]:
        raise UnreadableImageError(
            f"{layers.shape[2]} bands, where --bands names band {max(numbers)} (pass other numbers)"
        )
    missing = no_data if options.no_data is None else options.no_data
    scaled = {band: _scaled(layers[:, :, band - 1], options, missing) for band in {*numbers}}
    chosen = numbers if len(numbers) == 3 else numbers * 3
    return np.stack([scaled[band] for band in chosen], axis=2)


def _scaled(band: NDArray[Any], options: ImageOptions, no_data: float | None) -> Pixels:
    has_data = np.isfinite(band)
    if no_data is not None:
        has_data &= band != _in_type(no_data, band.dtype)
    values = band[has_data].astype(np.float64)
    pixels = np.zeros(band.shape, np.uint8)
    if not values.size:
        return pixels
    low, high, are_percentiles = options.band_ends
    if are_percentiles:
        low, high = np.percentile(values, [low, high])
    if high > low:
        fractions = np.clip((values - low) / (high - low), 0, 1)
    else:  # percentiles of a band of equal values
        fractions = (values > low).astype(np.float64)
    pixels[has_data] = np.rint(255 * fractions).astype(np.uint8)
    return pixels


def _in_type(value: float, dtype: np.dtype[Any]) -> Any:
    """Value as a band of this type stores it: -3.4e38 as a text is no number of 32 bits."""
    return dtype.type(value) if dtype.kind == "f" else value


def _read_bands(file: TiffFile, options: ImageOptions) -> tuple[NDArray[Any], float | None]:
    page: Any = file.pages[0]
    tag = page.tags.get(tiff.NO_DATA)
    no_data = tiff.parse_no_data(None if tag is None else tag.value)
    n_bands = page.samplesperpixel
    if n_bands == 1 and max(options.band_numbers) > 1:
        pages = _equal_pages(file, page)
        _require_size(page.nbytes * len(pages))
        return np.stack([one.asarray() for one in pages], axis=2), no_data
    _require_size(page.nbytes)
    values = page.asarray()
    is_planar = n_bands > 1 and page.planarconfig == 2
    values = values.reshape(
        (n_bands, *values.shape[-2:]) if is_planar else (*page.shape[:2], n_bands)
    )
    return (values.transpose(1, 2, 0) if is_planar else values), no_data


def _equal_pages(file: TiffFile, first: TiffPage) -> list[Any]:
    pages: list[Any] = list(file.pages)
    return [page for page in pages if page.shape == first.shape and page.dtype == first.dtype]


def _require_size(n_bytes: int) -> None:
    if n_bytes > MOST_BYTES:
        raise UnreadableImageError(
            f"{n_bytes} bytes of pixels, above the limit of {MOST_BYTES} (split the image)"
        )
