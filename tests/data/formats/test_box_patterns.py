"""A mistake that most boxes share is named; single mistakes and correct boxes pass."""

import pytest

from headstart.data.dataset import Boxes
from headstart.data.formats.box_patterns import require_plain_boxes
from headstart.errors import DataError

PLAIN = [(10, 20, 40, 60), (0, 0, 99, 79), (50, 10, 90, 70), (5, 5, 8, 9), (60, 40, 99.5, 79.5)]


def check(corners, form, size=(100, 80)):
    boxes = Boxes(corners=tuple(corners), labels=("cat",) * len(corners), size=size)
    require_plain_boxes([boxes], "'a.json'", form)


def fractions(x0, y0, x1, y1):
    return x0 / 100, y0 / 80, x1 / 100, y1 / 80


def swapped(x0, y0, x1, y1):
    return x1, y1, x0, y0


def swapped_x(x0, y0, x1, y1):
    return x1, y0, x0, y1


def corners_as_sizes(x0, y0, x1, y1):
    return x0, y0, x0 + x1, y0 + y1


def sizes_as_corners(x0, y0, x1, y1):
    return x0, y0, x1 - x0, y1 - y0


FORMS = ("corners", "width and height")
WRONG = [
    (fractions, "fractions of the image's size", FORMS),
    (swapped, "swapped corners", FORMS[:1]),
    (swapped_x, "swapped corners", FORMS[:1]),
    (swapped, "a negative width or height", FORMS[1:]),
    (swapped_x, "a negative width or height", FORMS[1:]),
    (corners_as_sizes, "x2 and y2 in place of width and height", FORMS[1:]),
    (sizes_as_corners, "width and height in place of xmax", FORMS[:1]),
]


@pytest.mark.parametrize("n_right", [0, 1, 2])
@pytest.mark.parametrize(("change", "words", "forms"), WRONG)
def test_a_shared_mistake_is_named(change, words, forms, n_right):
    boxes = [(60, 50, 90, 75)] * 4 + PLAIN[2:3]
    wrong = [change(*box) for box in boxes]
    right = [(10, 10, 12, 12)] * n_right
    for form in forms:
        with pytest.raises(DataError, match=words) as caught:
            check(wrong + right, form)
        assert f"{len(wrong)} of {len(wrong) + n_right} boxes" in str(caught.value)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("corners", "size"),
    [
        (PLAIN, (100, 80)),
        (PLAIN, None),
        ([], (100, 80)),
        ([swapped(*PLAIN[0]), *PLAIN[1:]], (100, 80)),
        ([fractions(*PLAIN[0]), *PLAIN[1:]], (100, 80)),
        ([fractions(*PLAIN[0])] * 2, (100, 80)),
        ([(0, 0, 1, 1)] * 9, (100, 80)),
        ([(-1, -1, 101, 81)] * 9, (100, 80)),
        ([(90, 70, 140, 120), *PLAIN], (100, 80)),
        ([(0.5, 0.5, 1.5, 1.5)] * 9, (2, 2)),
        ([(0, 0, 100, 80)] * 9, (100, 80)),
    ],
)
def test_correct_boxes_and_single_mistakes_pass(corners, size, form):
    check(corners, form, size)
