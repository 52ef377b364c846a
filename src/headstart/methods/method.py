"""The contract of a method: a model and examples in, a new model out."""

from __future__ import annotations

from typing import ClassVar, Protocol

from headstart.data.samples import Dataset
from headstart.features import Extractor
from headstart.model import TransferModel

__all__ = ["Method"]


class Method(Protocol):
    """A way to learn, as a frozen keyword-only dataclass.

    Its fields are the Python arguments, the command line's flags and the record that is stored
    with the model. The model given is never modified.
    """

    name: ClassVar[str]

    def check(self, train: Dataset) -> None:
        """Refuse data that this method cannot learn from, before anything is computed.

        Raises
        ------
        DataError
            By the classes' names.
        """
        ...

    def fit(
        self,
        model: TransferModel,
        train: Dataset,
        val: Dataset | None = None,
        *,
        extractor: Extractor,
    ) -> TransferModel:
        """Learn from ``train`` (and select on ``val``) and return a new model.

        Parameters
        ----------
        model : TransferModel
        train : Dataset
            The only examples that parameters are fitted on.
        val : Dataset, optional
            For methods that stop or select on held-out examples; never the test part.
        extractor : Extractor
            Makes the features of what is frozen.
        """
        ...
