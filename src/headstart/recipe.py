"""Everything that decides a run, as a value."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from headstart.data.prepare import BadFiles
from headstart.errors import UsageError
from headstart.methods.linear_probe import LinearProbe
from headstart.methods.method import Method, described

__all__ = ["DEFAULT_BACKBONE", "Recipe"]

DEFAULT_BACKBONE = "embedded/efficientnet_lite0"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run, the pictures aside.

    Parameters
    ----------
    backbone : str
        A name of the backbone grammar, such as ``torchvision/resnet18``.
    method : Method
        How the model learns.
    group_by : str, optional
        Column or regular expression that names each picture's group.
    bad_files : {"error", "skip"}
        What to do with files that cannot be decoded.
    allow_overlap : bool
        Go on although the same picture lies on both sides of a split.
    test_fraction : float
        Share of the pictures to test on, where the data bring no split.
    engine : {"auto", "fp32", "bf16", "openvino", "openvino-bf16"}
        Arithmetic of the frozen backbone; ``auto`` measures.
    device : {"auto", "cpu", "cuda", "mps"}
    offline : bool, optional
        Open no socket; None asks the environment.
    seed : int
        Decides the split and the bootstrap, 0 or more; a method has a seed of its own, and the
        command line gives both the same.

    Raises
    ------
    UsageError
        If the seed is negative, or the share to test on is none.
    """

    backbone: str = DEFAULT_BACKBONE
    method: Method = field(default_factory=LinearProbe)
    group_by: str | None = None
    bad_files: BadFiles = "error"
    allow_overlap: bool = False
    test_fraction: float = 0.2
    engine: str = "auto"
    device: str = "auto"
    offline: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UsageError(f"Expected `seed` to be 0 or more, got {self.seed}.")
        if not 0 < self.test_fraction < 1:
            raise UsageError(
                "Expected `test_fraction` to lie between 0 and 1, got "
                f"{self.test_fraction}; do give a share such as 0.2."
            )

    def as_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values, for resolved.yaml."""
        method = described(self.method)
        return json.loads(json.dumps({**asdict(self), "method": method}))  # type: ignore[no-any-return]
