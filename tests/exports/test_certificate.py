"""Certificates: what agrees, and what is refused."""

import numpy as np
import pytest

from headstart.errors import ExportError
from headstart.exports.certificate import certify
from headstart.models.tasks import ClassificationTask

TASK = ClassificationTask(classes=("cat", "dog"))
MODEL = np.array([[0.2, 0.8], [0.501, 0.499]])


def _certify(exported: list[list[float]], tolerance: float = 0.01):
    return certify(
        TASK, ["a.png", "b.png"], MODEL, np.array(exported), runtime="R 1", tolerance=tolerance
    )


def test_a_tie_may_have_another_label() -> None:
    certificate = _certify([[0.2, 0.8], [0.499, 0.501]])
    certificate.require_agreement()
    values = certificate.as_dict()
    assert values["agrees"]
    assert values["label_agreement"] == 0.5
    assert values["largest_difference"] == pytest.approx(0.002)
    assert [image["same_label"] for image in values["images"]] == [True, False]


@pytest.mark.parametrize("wrong", [0.7, float("nan")])
def test_a_difference_is_refused_by_the_name_of_the_worst_image(wrong: float) -> None:
    certificate = _certify([[0.2, 0.8], [wrong, 0.3]])
    assert not certificate.agrees
    with pytest.raises(ExportError, match=r"R 1: largest .* image is 'b.png'\. No file was kept"):
        certificate.require_agreement()


def test_several_labels_are_compared_by_their_thresholds() -> None:
    task = ClassificationTask(classes=("cat", "dog"), kind="multilabel", thresholds=(0.1, 0.9))
    certificate = certify(
        task, ["a"], np.array([[0.2, 0.8]]), np.array([[0.2, 0.95]]), runtime="R", tolerance=0.5
    )
    assert (certificate.agrees, certificate.label_agreement) == (True, 0.0)
