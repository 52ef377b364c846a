import numpy as np
import pytest
import torch

from headstart.errors import UsageError
from headstart.training.weight_averaging import ema, ema_decay, greedy_soup, interpolate, soup


def state(seed, dtype=torch.float32, count=0):
    values = np.random.default_rng(seed).normal(size=(3, 2))
    return {
        "w": torch.from_numpy(values).to(dtype),
        "num_batches_tracked": torch.tensor(count),
    }


# Every average of two or more states, and the weights that it gives to the first and the last.
PAIRS = [
    pytest.param(lambda a, b: interpolate(a, b, 0.3), (0.7, 0.3), id="interpolate"),
    pytest.param(lambda a, b: ema(a, b, 0.9), (0.9, 0.1), id="ema"),
    pytest.param(lambda a, b: soup([a, b]), (0.5, 0.5), id="soup"),
    pytest.param(
        lambda a, b: greedy_soup([(a, 2), (b, 1)], lambda _: 3)[0], (0.5, 0.5), id="greedy"
    ),
]


@pytest.mark.parametrize(("average", "weights"), PAIRS)
def test_an_average_is_its_formula(average, weights):
    first, last = state(0, count=5), state(1, count=7)
    averaged = average(first, last)
    expected = weights[0] * first["w"].numpy() + weights[1] * last["w"].numpy()
    np.testing.assert_allclose(averaged["w"].numpy(), expected, rtol=1e-5)
    assert averaged["num_batches_tracked"] == 7
    assert averaged["num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize(("average", "weights"), PAIRS)
def test_an_average_of_equals_is_bit_for_bit_the_same(average, weights):
    first = state(0)
    assert torch.equal(average(first, state(0))["w"], first["w"])


@pytest.mark.parametrize(("average", "weights"), PAIRS)
def test_an_average_neither_changes_nor_shares_what_was_given(average, weights):
    first, last = state(0, count=5), state(1, count=7)
    averaged = average(first, last)
    for tensor in averaged.values():
        tensor.zero_()
    for argument, untouched in ((first, state(0, count=5)), (last, state(1, count=7))):
        assert all(torch.equal(argument[name], untouched[name]) for name in argument)


@pytest.mark.parametrize(("average", "weights"), PAIRS)
@pytest.mark.parametrize("other", [{"v": torch.ones(3, 2)}, {"w": torch.ones(2, 3)}])
def test_states_of_two_networks_are_refused(average, weights, other):
    with pytest.raises(UsageError, match="one network"):
        average({"w": torch.ones(3, 2)}, other)


def test_the_ends_of_the_way_are_exact():
    start, end = state(0), state(1)
    assert torch.equal(interpolate(start, end, 0)["w"], start["w"])
    assert torch.equal(interpolate(start, end, 1)["w"], end["w"])
    assert torch.equal(ema(start, end, 0)["w"], end["w"])
    assert torch.equal(ema(start, end, 1)["w"], start["w"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_keep_their_dtype(dtype):
    pair = state(0, dtype), state(1, dtype)
    assert interpolate(*pair, 0.5)["w"].dtype == dtype
    assert soup(pair)["w"].dtype == dtype


def test_float64_is_averaged_in_float64():
    values = interpolate(state(0, torch.float64), state(1, torch.float64), 0.3)["w"].numpy()
    pair = [state(seed, torch.float64)["w"].numpy() for seed in (0, 1)]
    np.testing.assert_allclose(values, 0.7 * pair[0] + 0.3 * pair[1], rtol=1e-14)


def test_a_moving_average_of_half_precision_moves():
    live = {"w": torch.tensor([2.0], dtype=torch.bfloat16)}
    average = ema({"w": torch.tensor([1.0], dtype=torch.bfloat16)}, live, 0.999)
    for _ in range(999):  # in bfloat16 every one of these steps would be rounded away
        average = ema(average, live, 0.999)
    assert average["w"].item() == pytest.approx(2 - 0.999**1000, rel=1e-4)


def test_a_moving_average_is_the_weighted_sum_of_its_past():
    past = [state(seed) for seed in range(5)]
    average = past[0]
    for live in past[1:]:
        average = ema(average, live, 0.8)
    weights = [0.8**4] + [0.2 * 0.8 ** (4 - i) for i in range(1, 5)]
    expected = sum(w * s["w"].numpy() for w, s in zip(weights, past, strict=True))
    np.testing.assert_allclose(average["w"].numpy(), expected, rtol=1e-5)


def test_the_decay_grows_to_its_limit():
    decays = [ema_decay(step, 0.99) for step in range(2000)]
    assert decays == sorted(decays)
    assert decays[0] == 0.1
    assert decays[-1] == 0.99


def test_a_soup_is_the_mean():
    states = [state(seed) for seed in range(7)]
    expected = np.mean([network["w"].numpy() for network in states], axis=0)
    np.testing.assert_allclose(soup(states)["w"].numpy(), expected, rtol=1e-5, atol=1e-7)


def test_a_greedy_soup_takes_the_best_first_and_only_what_helps():
    # The score is closeness to 0: -1 first, 1.5 makes 0.25, then 2 would make 0.83; -1.6 helps
    # no more than 0.25 does, and is tried before 2.
    values = (2.0, -1.0, -1.6, 1.5)
    scored = []

    def score(mixed):
        scored.append(float(mixed["w"]))
        return -abs(scored[-1])

    networks = [({"w": torch.tensor([v])}, -abs(v)) for v in values]
    mixed, chosen = greedy_soup(networks, score)
    assert chosen == (1, 3)
    assert mixed["w"].item() == 0.25
    assert scored == pytest.approx([0.25, (-1 + 1.5 - 1.6) / 3, (-1 + 1.5 + 2) / 3])


def test_a_greedy_soup_keeps_what_does_not_lower_the_score():
    networks = [(state(seed), 0.5) for seed in range(3)]
    mixed, chosen = greedy_soup(networks, lambda _: 0.5)
    assert chosen == (0, 1, 2)
    assert torch.equal(mixed["w"], soup([network for network, _ in networks])["w"])


def test_a_greedy_soup_of_one_is_the_best_itself():
    networks = [(state(0), 0.1), (state(1), 0.9)]
    mixed, chosen = greedy_soup(networks, lambda _: 0.2)
    assert chosen == (1,)
    assert torch.equal(mixed["w"], state(1)["w"])


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize(
    "use",
    [
        lambda s: interpolate(state(0), state(1), s),
        lambda s: ema(state(0), state(1), s),
        lambda s: ema_decay(3, s),
    ],
)
def test_a_share_outside_its_range_is_refused(use, share):
    with pytest.raises(UsageError, match="from 0 to 1"):
        use(share)


def test_soups_of_nothing_are_refused():
    with pytest.raises(UsageError, match="at least one"):
        soup([])
    with pytest.raises(UsageError, match="finite scores"):
        greedy_soup([], lambda _: 0)
    with pytest.raises(UsageError, match="finite scores"):
        greedy_soup([(state(0), float("nan"))], lambda _: 0)
    with pytest.raises(UsageError, match="at least 0"):
        ema_decay(-1, 0.9)
