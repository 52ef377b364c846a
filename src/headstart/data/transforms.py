"""What a backbone's weights expect of a picture; travels with the model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from headstart.data.placement import Placement
from headstart.errors import UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["Interpolation", "Preprocess", "central_square"]

Interpolation = Literal["bilinear", "bicubic"]
Fit = Literal["crop", "squash"]

RESIZE_VERSION = 1
"""Raised when the same settings give other pixels, so that kept features are not mixed up."""

LONGEST_SIDE = 8
"""Longest side kept, in shorter sides: a strip one pixel high must not take gigabytes."""


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """What the weights expect: size, crop, interpolation, mean and standard deviation.

    Parameters
    ----------
    resize : int
        Shorter side in pixels, at least ``crop``; smaller pictures are enlarged.
    crop : int
        Side of the central square in pixels.
    interpolation : {"bilinear", "bicubic"}
        Always antialiased.
    mean, std : tuple of three floats
        In red, green, blue, of values in 0..1.
    fit : {"crop", "squash"}
        ``squash`` resizes both sides to ``resize`` whatever the shape (some SigLIP models).
    canvas : (int, int), optional
        Height and width of what the network reads where places count (boxes, masks): the whole
        picture is resized to fit, aspect kept, and put at the top left; the rest is filled with
        the mean colour. ``resize``, ``crop`` and ``fit`` then say nothing.

    Raises
    ------
    UsageError
        If a value cannot be meant.

    Examples
    --------
    >>> expects = Preprocess(
    ...     resize=256, crop=224, interpolation="bilinear", mean=(0.5,) * 3, std=(1.0,) * 3
    ... )
    >>> expects.resize_and_crop(np.zeros((375, 500, 3), dtype=np.uint8)).shape
    (224, 224, 3)
    >>> Preprocess.from_dict(expects.as_dict()) == expects
    True
    """

    resize: int
    crop: int
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Fit = "crop"
    canvas: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.crop <= self.resize:
            raise UsageError(
                f"Expected 0 < `crop` <= `resize`, got crop {self.crop} and resize {self.resize}; "
                "do give sizes in pixels."
            )
        for name, value, allowed in (
            ("interpolation", self.interpolation, ("bilinear", "bicubic")),
            ("fit", self.fit, ("crop", "squash")),
        ):
            if value not in allowed:
                raise UsageError(f"Expected `{name}` to be one of {allowed}, got {value!r}.")
        if len(self.mean) != 3 or len(self.std) != 3 or not min(self.std) > 0:
            raise UsageError(
                "Expected `mean` and `std` to be three numbers each, std above zero, "
                f"got {self.mean} and {self.std}."
            )
        if self.canvas is not None and not _is_size(self.canvas):
            raise UsageError(
                "Expected `canvas` to be height and width in whole pixels above zero, "
                f"got {self.canvas!r}."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of what the network reads: the canvas, or the square."""
        return (self.crop, self.crop) if self.canvas is None else self.canvas

    @property
    def fill(self) -> tuple[int, int, int]:
        """The mean colour, 0 to 255: what a canvas shows where the picture does not reach."""
        red, green, blue = (min(255, max(0, round(255 * value))) for value in self.mean)
        return red, green, blue

    def placement(self, height: int, width: int) -> Placement:
        """Say where a picture of this size lies on the canvas.

        Parameters
        ----------
        height, width : int
            Of the picture as it is shown.

        Raises
        ------
        UsageError
            If no canvas is set: of a picture that is cut not every box has a place.

        Examples
        --------
        >>> rgb = (0.5, 0.5, 0.5)
        >>> expects = Preprocess(
        ...     resize=8, crop=8, interpolation="bilinear", mean=rgb, std=rgb, canvas=(32, 64)
        ... )
        >>> place = expects.placement(200, 100)
        >>> place.rows, place.columns
        (32, 16)
        """
        if self.canvas is None:
            raise UsageError(
                "Expected `canvas` to be set where boxes or masks are, got None; "
                "do give the height and width that the network reads."
            )
        return Placement.of(height, width, canvas=self.canvas)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; without ``canvas`` where there is none, as ever."""
        plain = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        if self.canvas is None:
            del plain["canvas"]
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what ``as_dict`` wrote.

        Raises
        ------
        UsageError
            If a value is missing, unknown or cannot be meant.
        """
        known = {field.name for field in fields(cls)}
        if not known - {"fit", "canvas"} <= set(values) <= known:
            raise UsageError(
                f"Expected preprocessing to have {sorted(known)}, got {sorted(values)}."
            )
        given: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in values.items()
        }
        return cls(**given)

    def fingerprint(self) -> str:
        """Hash of the settings and of how they are carried out: equal means equal pixels.

        >>> rgb = (0.5, 0.5, 0.5)
        >>> Preprocess(
        ...     resize=256, crop=224, interpolation="bicubic", mean=rgb, std=rgb
        ... ).fingerprint()[:8]
        '935320db'
        """
        text = json.dumps([RESIZE_VERSION, self.as_dict()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def resize_and_crop(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize a picture, antialiased, and cut the central square; THE one way to do so.

        Where ``canvas`` is set nothing is cut: what ``resize_only`` gives, in its own memory.

        Parameters
        ----------
        pixels : array, uint8, shape (H, W, 3)

        Returns
        -------
        array, uint8, shape (*shape, 3)
            Own memory. Without ``canvas``, of pictures longer than 8 to 1 only the central part
            is looked at.

        Raises
        ------
        UsageError
            If the array is not of that type and shape, or is empty.

        Examples
        --------
        >>> rgb = (0.5, 0.5, 0.5)
        >>> expects = Preprocess(resize=2, crop=2, interpolation="bilinear", mean=rgb, std=rgb)
        >>> expects.resize_and_crop(np.full((4, 8, 3), 7, dtype=np.uint8))[..., 0]
        array([[7, 7],
               [7, 7]], dtype=uint8)
        """
        if self.canvas is not None:
            return self.resize_only(pixels)
        return central_square(self.resize_only(pixels), self.crop).copy()

    def resize_only(
        self, pixels: NDArray[np.uint8], size: tuple[int, int] | None = None
    ) -> NDArray[np.uint8]:
        """Resize a whole picture as ``resize_and_crop`` does before it cuts.

        Parameters
        ----------
        pixels : array, uint8, shape (H, W, 3)
        size : (int, int), optional
            Height and width of the picture as it is shown, where it was decoded smaller: it
            decides the place on the canvas, so that boxes and pixels agree.

        Returns
        -------
        array, uint8, shape (height, width, 3)
            Shorter side ``resize``, longer side at most 9 times that; both sides ``resize``
            with ``fit="squash"``. May be a view of ``pixels``. Where ``canvas`` is set: of its
            shape, filled where the picture does not reach, in its own memory.

        Raises
        ------
        UsageError
            If the array is not of that type and shape, or is empty.

        Examples
        --------
        >>> rgb = (0.5, 0.5, 0.5)
        >>> expects = Preprocess(resize=4, crop=2, interpolation="bilinear", mean=rgb, std=rgb)
        >>> expects.resize_only(np.zeros((8, 12, 3), dtype=np.uint8)).shape
        (4, 6, 3)
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise UsageError(
                "Expected `pixels` to be uint8 of shape (H, W, 3), "
                f"got {pixels.dtype} of shape {pixels.shape}."
            )
        if self.canvas is not None:
            return self._on_canvas(pixels, self.placement(*(size or pixels.shape[:2])))
        if self.fit == "crop":
            pixels = _without_far_ends(pixels)
        height, width = self._size(pixels.shape[0], pixels.shape[1])
        if pixels.shape[:2] != (height, width):
            pixels = _resized(pixels, height, width, self.interpolation)
        return pixels

    def normalise(self, batch: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Turn pixels into what the first layer reads.

        Parameters
        ----------
        batch : tensor, uint8, shape (n, 3, H, W)
        dtype : torch.dtype, optional
            Of the result; float32 by default. The arithmetic is in float32 always.

        Returns
        -------
        tensor, shape (n, 3, H, W)
            ``(batch / 255 - mean) / std``, in the memory format and on the device of ``batch``.
        """
        import torch

        if batch.dtype != torch.uint8 or batch.ndim != 4 or batch.shape[1] != 3:
            raise UsageError(
                "Expected `batch` to be uint8 of shape (n, 3, H, W), "
                f"got {batch.dtype} of shape {tuple(batch.shape)}."
            )
        mean = torch.tensor(self.mean, device=batch.device).mul_(255)
        std = torch.tensor(self.std, device=batch.device).mul_(255)
        pixels = batch.permute(0, 2, 3, 1)
        if not pixels.is_contiguous():
            shape = (1, 3, 1, 1)
            found = batch.to(torch.float32).sub_(mean.view(shape)).div_(std.view(shape))
            return found.to(dtype or torch.float32)
        # Channels last: a whole row at a time, for three values at a time are slow.
        n, height, width, _ = pixels.shape
        rows = pixels.reshape(n * height, width * 3).to(torch.float32)
        rows = rows.sub_(mean.repeat(width)).div_(std.repeat(width)).to(dtype or torch.float32)
        return rows.view(n, height, width, 3).permute(0, 3, 1, 2)

    def _on_canvas(self, pixels: NDArray[np.uint8], place: Placement) -> NDArray[np.uint8]:
        found = np.empty((*place.canvas, 3), dtype=np.uint8)
        found[...] = self.fill
        if pixels.shape[:2] != (place.rows, place.columns):
            pixels = _resized(pixels, place.rows, place.columns, self.interpolation)
        found[: place.rows, : place.columns] = pixels
        return found

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """Size after resizing; the longer side is cut to whole pixels, never rounded up."""
        if self.fit == "squash":
            return self.resize, self.resize
        if height <= width:
            return self.resize, int(self.resize * width / height)
        return int(self.resize * height / width), self.resize


def _is_size(value: object) -> bool:
    """Whether it is a height and a width."""
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(type(side) is int and side > 0 for side in value)
    )


def central_square(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return the central square of a picture, as a view.

    Parameters
    ----------
    pixels : array, uint8, shape (H, W, 3)
    side : int
        In pixels, at most H and W.

    Examples
    --------
    >>> central_square(np.arange(36, dtype=np.uint8).reshape(3, 4, 3), 1)[0, 0].tolist()
    [18, 19, 20]
    """
    # Rounded to even, as the pretraining recipes do it.
    top, left = (round((length - side) / 2) for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


def _without_far_ends(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Drop what lies more than 4 shorter sides from the centre; the centre stays the centre."""
    longest = LONGEST_SIDE * min(pixels.shape[:2])
    top, left = (max(0, (side - longest) // 2) for side in pixels.shape[:2])
    return pixels[top : pixels.shape[0] - top, left : pixels.shape[1] - left]


def _resized(
    pixels: NDArray[np.uint8], height: int, width: int, interpolation: Interpolation
) -> NDArray[np.uint8]:
    # torch's uint8 kernel on interleaved colours is what torchvision calls: 3 to 5 times as
    # quick as Pillow within 1 grey level (2 bicubic), frees the GIL, needs no torchvision.
    import torch
    from torch.nn.functional import interpolate

    # torch warns of read-only arrays, such as those that Pillow gives.
    image = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)
    resized = interpolate(image[None], size=(height, width), mode=interpolation, antialias=True)
    return resized[0].permute(1, 2, 0).numpy()
