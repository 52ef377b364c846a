"""Drawn sets: the same by seed, balanced, nothing shared between parts, each as it is described."""

import numpy as np
import pytest

from headstart.cache import Cache
from headstart.data.demo import regimes
from headstart.data.loader import digest_of
from headstart.data.prepare import prepare
from headstart.errors import UnknownNameError

SETS = ("near", "shifted", "hopeless", "symbols", "blanks")


def pixels(data):
    return np.stack([sample.image for sample in data.samples])


@pytest.mark.parametrize("name", SETS)
def test_the_seed_decides_every_pixel(name) -> None:
    first, again, other = (regimes.make(name, seed) for seed in (4, 4, 5))
    assert (pixels(first) == pixels(again)).all()
    assert [s.target for s in first.samples] == [s.target for s in again.samples]
    assert (pixels(first) != pixels(other)).mean() > 0.5
    assert first.name != other.name
    assert pixels(first).shape[1:] == (regimes.SIDE, regimes.SIDE, 3)
    assert not first.samples[0].image.flags.writeable


@pytest.mark.parametrize("name", SETS)
def test_classes_are_balanced_in_each_part(name) -> None:
    data = regimes.make(name)
    for part in ("train", "test"):
        counts = set(data.split(part).counts().values())
        assert len(counts) == 1
    tested = len(data.split("test"))
    assert tested == (320 if name in regimes.EXPECTED_METHOD else 0)


@pytest.mark.parametrize("name", regimes.EXPECTED_METHOD)
def test_no_image_is_there_twice_nor_in_the_source(name) -> None:
    source = regimes.make(regimes.SOURCES[name])
    digests = [digest_of(sample) for sample in (*regimes.make(name).samples, *source.samples)]
    own = digests[: -len(source)]
    assert len(set(own)) == len(own)
    assert not set(own) & set(digests[-len(source) :])


@pytest.mark.parametrize("name", regimes.EXPECTED_METHOD)
def test_fit_finds_nothing_to_complain_of(name, tmp_path) -> None:
    with Cache(tmp_path) as cache:
        prepared = prepare(regimes.make(name, 1), cache=cache)
    assert prepared.findings == ()
    assert len(prepared.test) == 320


def test_parts_of_other_names_and_seeds_are_drawn_apart() -> None:
    drawn = [digest_of(regimes.make(name, 0).samples[0]) for name in ("near", "shifted", "symbols")]
    assert len(set(drawn)) == 3


def test_blanks_have_no_edges_and_two_levels() -> None:
    data = regimes.blanks(2)
    assert (pixels(data).std(axis=(1, 2)) == 0).all()
    light = np.asarray([sample.target == "light" for sample in data.samples])
    means = pixels(data).mean(axis=(1, 2, 3))
    assert means[light].min() > means[~light].max()


def test_hollow_symbols_differ_from_filled_ones_in_how_much_they_cover() -> None:
    def covered(data, kind):
        """Share of pixels far lighter than the ground, which is the darker part."""
        chosen = pixels(data)[[s.target == kind for s in data.samples]].mean(axis=-1)
        ground = np.median(chosen, axis=(1, 2), keepdims=True)
        return (chosen > ground + 40).mean()

    filled, hollow = regimes.symbols(), regimes.shifted()
    assert covered(filled, "square") > 1.3 * covered(hollow, "square")


def test_unknown_names_are_told() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'near'"):
        regimes.make("neat")
    assert set(regimes.EXPECTED_METHOD) == set(regimes.SOURCES)
