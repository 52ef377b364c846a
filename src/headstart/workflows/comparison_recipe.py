"""Settings of a comparison, as a value."""

from __future__ import annotations

from dataclasses import dataclass

from headstart.backbones.frozen import FrozenBackbone, name_of, to_backbone
from headstart.errors import UsageError
from headstart.workflows.backbone_names import DEFAULT_BACKBONE

__all__ = ["ComparisonRecipe"]


@dataclass(frozen=True, kw_only=True)
class ComparisonRecipe:
    """Settings of a comparison.

    Parameters
    ----------
    methods : tuple of str
        ``scratch``, ``probe`` (for boxes and masks: the head alone) or ``finetune``, with options
        if needed, as in ``finetune?train-from=all&epochs=5``; or ``auto``, the winner of a race on
        the training images. The first is the reference.
    backbones : tuple of str or torch.nn.Module
    seeds : int
        Number of repetitions, with seeds from the recipe's seed on.
    fractions : tuple of float
        Shares of the training images; each part contains the smaller ones.
    folds : int, optional
        Folds of one cross-validation per seed; 0 for one split per seed. By default 5 for fewer
        than 200 images with classes, else 0. Ignored if the data has a test part.
    epochs : int, optional
        Epochs of every method that trains by gradient, unless its own options set them.
    steps : int, optional
        Steps of every method that trains by gradient, rounded to whole epochs; the same for any
        number of images. Instead of ``epochs``.

    Raises
    ------
    UsageError
        If there is nothing to compare, or a name occurs twice.
    """

    methods: tuple[str, ...] = ("scratch", "probe", "finetune")
    backbones: tuple[str | FrozenBackbone, ...] = (DEFAULT_BACKBONE,)
    seeds: int = 5
    fractions: tuple[float, ...] = (1.0,)
    folds: int | None = None
    epochs: int | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "backbones", tuple(map(to_backbone, self.backbones)))
        backbones = tuple(map(name_of, self.backbones))
        for name, names in (("methods", self.methods), ("backbones", backbones)):
            if not names or len(set(names)) < len(names):
                raise UsageError(
                    f"`{name}` must be one or more different names, got "
                    f"{', '.join(names) or 'none'}."
                )
        if self.epochs is not None and self.steps is not None:
            raise UsageError(
                f"Both `epochs` ({self.epochs}) and `steps` ({self.steps}) are given. Remove one "
                "of --epochs and --steps."
            )
        for name in ("epochs", "steps"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise UsageError(f"`{name}` must be 1 or more, got {limit}.")
        if self.folds is not None and (self.folds < 0 or self.folds == 1):
            raise UsageError(f"`folds` must be 2 or more, or 0 for none, got {self.folds}.")
        if self.seeds < 1:
            raise UsageError(f"`seeds` must be 1 or more, got {self.seeds}.")
        if not self.fractions or not all(0 < share <= 1 for share in self.fractions):
            raise UsageError(
                f"`fractions` must be above 0 and at most 1, got {list(self.fractions)}."
            )

    def budget(self) -> str:
        """Describe the budget of all trainings.

        >>> ComparisonRecipe(steps=300).budget()
        'at most 300 steps for methods that train by gradient, in whole epochs'
        """
        if self.steps is not None:
            limit = f"{self.steps} step{'s' * (self.steps > 1)}"
            return f"at most {limit} for methods that train by gradient, in whole epochs"
        if self.epochs is not None:
            limit = f"{self.epochs} epoch{'s' * (self.epochs > 1)}"
            return f"at most {limit} for methods that train by gradient"
        return "each method's own options and defaults"
