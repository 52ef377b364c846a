"""Labels, groups, weights and seeds, compared with scikit-learn's own readings of them."""

import numpy as np
import pytest
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import check_random_state

from headstart.data.labels import check_weights, encode_labels, group_names, seed_of
from headstart.errors import UsageError


@pytest.mark.parametrize("y", [["b", "a", "b"], [3, -1, 3], [True, False, True], [2.0, 0.0, 2.0]])
def test_labels_are_those_of_scikit_learn(y):
    names, codes = encode_labels(y, 3)
    encoder = LabelEncoder().fit(y)
    assert names.tolist() == encoder.classes_.tolist()
    assert codes.tolist() == encoder.transform(y).tolist()


@pytest.mark.parametrize("y", [[1, 2], [[1], [2], [3]], [0.5, 1.2, 3.7], [1.0, np.nan, 2.0]])
def test_labels_that_are_none_are_refused(y):
    with pytest.raises(UsageError, match="`y` must"):
        encode_labels(y, 3)


def test_a_seed_is_drawn_from_a_random_state():
    state = np.random.RandomState(4)
    drawn = check_random_state(4).randint(2**31 - 1)
    assert seed_of(state) == drawn
    assert seed_of(state) != drawn  # the state has moved on, as in scikit-learn
    assert seed_of(None) != seed_of(None)
    assert seed_of(np.uint8(9)) == 9


def test_weights_need_labels():
    with pytest.raises(UsageError, match="`sample_weight` needs `y`"):
        check_weights([1.0], 1, has_labels=False)


def test_groups_are_named_once_each():
    assert group_names(np.array([1, 1, 2]), 3) == ["1", "1", "2"]
    with pytest.raises(UsageError, match="one group for each of 2 images, got 3"):
        group_names([1, 1, 2], 2)
