"""Recall, precision and cost of the search for changed copies of images.

60 images of a set are added again for each change: cropped by 5 to 20 % of each side at a random
place, mirrored, rotated by 90 degrees, brightened by 1.5 (clipped), and stored smaller with JPEG
quality 30. Recall is the share of the added images that are found with their original. Precision
counts every other pair as wrong, also the copies that the set has itself; these are printed.

    python benchmarks/copies.py FOLDER ... [--cold]
    python benchmarks/copies.py FOLDER ... --known 300

Cost is the processor time of the search for the whole set with its copies. ``--cold`` measures the
processor time of `fit` with a linear probe and an empty cache, for the same number of images.

``--known`` measures the search of `evaluate`, which has only the descriptors of training images:
that many images are left out of the set, three times. Printed are the crops of the others that are
found, and the left-out images and crops of them that are found by mistake.
"""

import argparse
import io
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

import headstart
from headstart.data.checks.copies import find_copies, find_known_copies, pack_descriptors
from headstart.data.checks.images import find_duplicates
from headstart.data.checks.scan import scan
from headstart.data.dataset import Sample
from headstart.data.readers import list_images

PER_CHANGE = 60


def crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    share = rng.uniform(0.05, 0.2)
    width, height = (int(side * (1 - share)) for side in image.size)
    left = int(rng.integers(0, image.width - width + 1))
    top = int(rng.integers(0, image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def rotate(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.transpose(rng.choice([Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270]))


CHANGES = {
    "crop of 5 to 20 %": crop,
    "mirrored": lambda image, _: ImageOps.mirror(image),
    "rotated by 90 degrees": rotate,
    "brightened by 1.5": lambda image, _: ImageEnhance.Brightness(image).enhance(1.5),
    "half size, quality 30": lambda image, _: image.resize((image.width // 2, image.height // 2)),
}


def changed_copies(paths: list[Path]) -> tuple[list[Sample], list[tuple[str, int]]]:
    """The changed images, and for each its change and the row of its original."""
    rng = np.random.default_rng(0)
    samples, origins = [], []
    for name, change in CHANGES.items():
        quality = 30 if "quality" in name else 90
        rows = rng.choice(len(paths), PER_CHANGE, replace=False)
        for row in rows:
            buffer = io.BytesIO()
            with Image.open(paths[row]) as image:
                change(image.convert("RGB"), rng).save(buffer, "JPEG", quality=quality)
            samples.append(Sample(image=buffer.getvalue(), title=f"{name} of {paths[row].name}"))
            origins.append((name, int(row)))
    return samples, origins


def measure(folder: Path) -> None:
    """Print the line of a set."""
    paths = [*list_images(folder)]
    copies, origins = changed_copies(paths)
    samples = [*(Sample(image=path) for path in paths), *copies]
    started = time.process_time()
    records = scan(samples, workers=1)
    scanned = time.process_time()
    found = find_copies(records)
    seconds = time.process_time() - scanned
    pairs = {tuple(sorted((copy.copy, copy.original))): copy for copy in found}
    for group in find_duplicates(records):  # the check reports these, too
        pairs |= {(i, j): None for i in group for j in group if i < j}
    origin = {len(paths) + i: row for i, (_, row) in enumerate(origins)}

    def is_true(pair: tuple[int, int]) -> bool:
        return origin.get(pair[0], pair[0]) == origin.get(pair[1], pair[1])

    hits = {
        name: sum(
            (row, len(paths) + i) in pairs for i, (own, row) in enumerate(origins) if own == name
        )
        for name in CHANGES
    }
    wrong = [pair for pair in pairs if not is_true(pair)]
    recalls = " ".join(f"{name} {hits[name] / PER_CHANGE:.2f};" for name in CHANGES)
    print(
        f"{folder.name} ({len(paths)} + {len(copies)}): {recalls} precision "
        f"{1 - len(wrong) / len(pairs):.3f}; scan {scanned - started:.1f} s, "
        f"search {seconds:.2f} s",
        flush=True,
    )
    for pair in wrong:
        match = pairs[pair].match if pairs[pair] else 1.0
        print(f"    {match:.3f} {samples[pair[0]].name} {samples[pair[1]].name}")


def cold_run(folder: Path) -> None:
    """Print the processor time of a run with an empty cache."""
    with tempfile.TemporaryDirectory() as out:
        started = time.process_time()
        headstart.fit(folder, method="linear-probe", out=Path(out) / "run", no_cache=True)
        seconds = time.process_time() - started
    print(f"{folder.name}: {seconds:.1f} s of processor time for a cold run", flush=True)


def crop_file(path: Path, rng: np.random.Generator) -> Sample:
    buffer = io.BytesIO()
    with Image.open(path) as image:
        crop(image.convert("RGB"), rng).save(buffer, "JPEG", quality=90)
    return Sample(image=buffer.getvalue())


def measure_known(folder: Path, n: int) -> None:
    """Print how many crops of known images are found by the descriptors alone."""
    paths, counts = list_images(folder), np.zeros(3, dtype=int)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        order = [paths[row] for row in rng.permutation(len(paths))]
        known, others = order[:-n], order[-n:]
        packed = pack_descriptors(scan([Sample(image=path) for path in known]))
        tests = (
            [crop_file(path, rng) for path in known[:n]],
            [Sample(image=path) for path in others],
            [crop_file(path, rng) for path in others],
        )
        counts += [len(find_known_copies(scan(samples), packed)) for samples in tests]
    print(
        f"{folder.name}: found {counts[0]} of {3 * n} crops of known images, {counts[1]} of "
        f"{3 * n} other images, {counts[2]} of {3 * n} crops of these",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--known", type=int, default=0, metavar="N")
    options = parser.parse_args()
    for folder in options.folders:
        if options.known:
            measure_known(folder, options.known)
            continue
        measure(folder)
        if options.cold:
            cold_run(folder)


if __name__ == "__main__":
    main()
