"""A seed is a seed: cache on, off, full or damaged, and one thread or two give the same bytes."""

import hashlib
import itertools
from pathlib import Path

import pytest
import torch

from headstart.cache import Cache
from headstart.workflows.fit import fit

N_FLIPPED = 40


PHOTOS = Path(__file__).parents[1] / "golden" / "saved" / "photos"


def digest(run):
    files = ("model.safetensors", "predictions.csv")
    content = b"".join((Path(run.folder) / name).read_bytes() for name in files)
    return hashlib.sha256(content).hexdigest()


def flip(path):
    """Change bytes all over a file."""
    content = bytearray(path.read_bytes())
    for at in range(200, len(content), len(content) // N_FLIPPED):
        content[at] ^= 255
    path.write_bytes(content)


@pytest.fixture
def run(tmp_path, counts):
    """Return a function that runs ``fit`` and returns a digest of what it wrote."""
    numbers = itertools.count()

    def run(method, **changes):
        settings = {"method": method, "engine": "fp32", "device": "cpu", **changes}
        if method == "finetune":
            settings |= {"epochs": 1, "batch_size": 8}
        counts["runs that are compared byte for byte"] += 1
        return digest(fit(PHOTOS, out=tmp_path / f"{next(numbers)}", progress=False, **settings))

    return run


def test_a_probe_gives_the_same_bytes_whatever_the_cache_holds(run, tmp_path):
    cache = Cache(tmp_path / "cache")
    digests = [run("linear-probe", cache=cache) for _ in range(2)]  # empty, then full
    cache.close()
    flip(cache.path)
    digests.append(run("linear-probe", cache=cache))
    small = Cache(tmp_path / "small", budget_bytes=30_000)  # evicts values while they are computed
    digests.append(run("linear-probe", cache=small))
    threads = torch.get_num_threads()
    for number in (1, 2):
        torch.set_num_threads(number)
        try:
            digests.append(run("linear-probe", no_cache=True))
        finally:
            torch.set_num_threads(threads)
    assert len(set(digests)) == 1, digests


def test_a_training_gives_the_same_bytes_with_a_damaged_cache(run, tmp_path):
    """Damaged activations are computed again; they are found when they are read."""
    cache = Cache(tmp_path / "cache")
    first = run("finetune", cache=cache)
    cache.close()
    flip(cache.path)
    assert run("finetune", cache=cache) == first
