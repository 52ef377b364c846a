"""Fine-tuning of the last stage, compared with a plain loop that runs all stages in every epoch.

Plain: the network of torchvision or timm, with all stages before the last one frozen, in
inference mode as in Headstart, a new layer for the classes and AdamW. Every epoch runs the
complete network on every image, from JPEG files through a DataLoader with 2 workers. Ours:
``Finetune`` with an empty cache, so the seconds include the single pass of the frozen stages.
Both: float32, the same images, trained parameters, learning rates, schedule, clipping, batch size
and epochs, one validation per epoch on the same 15 % of the images, weights of the best epoch.
Seconds are measured from the weights in memory to the trained network; accuracy is measured on
separate test images. The sides run in turns. If there are no weights for ResNet-50, it gets
random ones, and only its seconds are meaningful.

    python benchmarks/last_stage.py [FOLDER] [--backbone NAME ...] [--photos 1000] [--epochs 10]

FOLDER contains one folder per class; by default HEADSTART_BENCH_DATA. ResNet-18 is included if
HEADSTART_BENCH_WEIGHTS (or --weights) is the file of torchvision's weights for it.
"""

import argparse
import copy
import math
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean

from headstart.runtime import cores, prepare

prepare()  # as the command line does, before torch is imported

import accelerate  # noqa: E402, F401 - imports of many seconds are not part of a training
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch._dynamo  # noqa: E402, F401 - as above: the first optimiser would
from PIL import Image  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402
from torchvision import transforms  # noqa: E402

from headstart.backbones.backbone import load  # noqa: E402
from headstart.backbones.catalog import resolve  # noqa: E402
from headstart.backbones.freezing import plan_freezing, trainable_parameters  # noqa: E402
from headstart.backbones.frozen import FrozenBackbone  # noqa: E402
from headstart.cache import Cache  # noqa: E402
from headstart.data.images import digest  # noqa: E402
from headstart.data.readers import read_dataset  # noqa: E402
from headstart.data.splits import holdout  # noqa: E402
from headstart.errors import WeightsNotFoundError  # noqa: E402
from headstart.features.extractor import Extractor  # noqa: E402
from headstart.methods.finetune import Finetune  # noqa: E402
from headstart.metrics.confidence_intervals import proportion_interval  # noqa: E402
from headstart.models.heads.linear import LinearHead  # noqa: E402
from headstart.models.tasks import ClassificationTask  # noqa: E402
from headstart.models.transfer_model import TransferModel  # noqa: E402
from headstart.training.optim import Training  # noqa: E402
from headstart.training.trainer import held_out  # noqa: E402

BATCH, WORKERS, N_TEST = 32, 2, 300
RATE, HEAD_RATE, DECAY, WARM_UP, CLIP = 1e-4, 1e-3, 0.01, 0.1, 1.0


class Photos(Dataset):
    """Images after torchvision's transforms, with the indices of their classes."""

    def __init__(self, data, preprocess):
        self.paths = [sample.image for sample in data.samples]
        self.targets = data.targets().tolist()
        self.transform = transforms.Compose(
            [
                transforms.Resize(
                    preprocess.resize, transforms.InterpolationMode(preprocess.interpolation)
                ),
                transforms.CenterCrop(preprocess.crop),
                transforms.ToTensor(),
                transforms.Normalize(preprocess.mean, preprocess.std),
            ]
        )

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB")), self.targets[index]


def network(backbone, n_classes):
    """Build the library's network with the backbone's weights and a new last layer."""
    library, _, name = backbone.spec.architecture.partition("/")
    if library == "timm":
        import timm

        model = timm.create_model(name, num_classes=n_classes, **dict(backbone.spec.model_options))
        head = model.get_classifier()
    else:
        from torchvision import models

        model = models.get_model(name, num_classes=n_classes)
        head = model.fc
    own_names = {*dict(model.named_parameters()), *dict(model.named_buffers())}
    head_ids = {id(parameter) for parameter in head.parameters()}
    head_names = {name for name, parameter in model.named_parameters() if id(parameter) in head_ids}
    state = {
        name: tensor
        for name, tensor in backbone.state.items()
        if name in own_names and name not in head_names
    }
    missing = model.load_state_dict(state, strict=False).missing_keys
    missing = {key for key in missing if not key.endswith("num_batches_tracked")} - head_names
    if missing:
        raise SystemExit(
            f"The weights of {name} have no tensors for {sorted(missing)}. Pass --backbone with "
            "complete weights."
        )
    return model, head


def groups_of(model, head, names):
    """Return AdamW's parameter groups: last stage and head, vectors without weight decay."""
    for parameter in model.parameters():
        parameter.requires_grad = False
    stage = [p for name, p in model.named_parameters() if name in names]
    groups = []
    for parameters, rate in ((stage, RATE), (list(head.parameters()), HEAD_RATE)):
        for parameter in parameters:
            parameter.requires_grad = True
        matrices = [p for p in parameters if p.ndim > 1]
        vectors = [p for p in parameters if p.ndim <= 1]
        groups.append({"params": matrices, "lr": rate, "weight_decay": DECAY})
        groups.append({"params": vectors, "lr": rate, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def schedule(optimiser, steps):
    """Linear warm-up, then half a cosine."""
    warm_up = round(WARM_UP * steps)

    def share(step):
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

    return torch.optim.lr_scheduler.LambdaLR(optimiser, share)


@torch.no_grad()
def correct_predictions(model, loader):
    return torch.cat([model(x).argmax(1) == y for x, y in loader]).numpy()


def plain(backbone, parts, arguments, seed):
    """Train; return the seconds, and whether each test image is predicted correctly."""
    train, val, test = parts
    torch.manual_seed(seed)
    started_at = time.perf_counter()
    model, head = network(backbone, len(train.classes))
    # Both sides start from the same random head.
    start = LinearHead.random(head.in_features, len(train.classes), seed=seed)
    head.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in start.state().items()})
    model.eval()
    if arguments.channels_last:
        model.to(memory_format=torch.channels_last)
    names = arguments.trained[backbone.spec.name]
    optimiser = torch.optim.AdamW(groups_of(model, head, names))
    trained = [p for group in optimiser.param_groups for p in group["params"]]
    options = {"batch_size": BATCH, "num_workers": WORKERS}
    loader = DataLoader(Photos(train, backbone.spec.preprocess), shuffle=True, **options)
    val_loader = DataLoader(Photos(val, backbone.spec.preprocess), **options)
    scheduler = schedule(optimiser, arguments.epochs * len(loader))
    best_accuracy, best_state = -1.0, {}
    for _ in range(arguments.epochs):
        for images, targets in loader:
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(images), targets).backward()
            torch.nn.utils.clip_grad_norm_(trained, CLIP)
            optimiser.step()
            scheduler.step()
        accuracy = correct_predictions(model, val_loader).mean()
        if accuracy > best_accuracy:
            best_accuracy, best_state = accuracy, copy.deepcopy(model.state_dict())
    model.load_state_dict(best_state)
    seconds = time.perf_counter() - started_at
    test_loader = DataLoader(Photos(test, backbone.spec.preprocess), **options)
    return seconds, correct_predictions(model, test_loader)


def ours(backbone, parts, arguments, seed):
    """Train; return the seconds, and whether each test image is predicted correctly."""
    train, val, test = parts
    fresh = replace(backbone)  # without a module: the time includes building it, as for `plain`
    method = Finetune(
        train_from=arguments.train_from,
        start="random",
        learning_rate=RATE,
        head_learning_rate=HEAD_RATE,
        activation_cache="on",
        training=Training(
            epochs=arguments.epochs,
            batch_size=BATCH,
            weight_decay=DECAY,
            warm_up=WARM_UP,
            clip=CLIP,
            patience=99,
        ),
        seed=seed,
    )
    model = TransferModel(backbone=fresh, task=ClassificationTask(classes=train.classes))
    with tempfile.TemporaryDirectory() as folder, Cache(Path(folder)) as cache:
        extractor = Extractor(cache=cache, engine="fp32", device="cpu")
        started_at = time.perf_counter()
        fitted = method.fit(model, train, val, extractor=extractor)
        seconds = time.perf_counter() - started_at
        probabilities = fitted.predict_probabilities(test.samples, extractor=extractor)
    return seconds, probabilities.argmax(1) == test.targets()


def open_backbone(name):
    """Return the backbone, and whether its weights are random because there are no others."""
    try:
        return FrozenBackbone.open(name, offline=True), False
    except WeightsNotFoundError:
        tensors = load(resolve(name, offline=True), pretrained=False, seed=0).state_dict()
        state = {key.removeprefix("trunk."): tensor for key, tensor in tensors.items()}
        return FrozenBackbone(spec=resolve(name, offline=True), state=state, origin={}), True


def parts_of(folder, photos, seed):
    """Return stratified parts for training, validation and test."""
    data = read_dataset(folder)
    rest, test_rows = holdout(data.targets(), fraction=N_TEST / len(data), seed=seed)
    data, test = data.subset(rest), data.subset(test_rows)
    if photos < len(data):
        _, rows = holdout(data.targets(), fraction=photos / len(data), seed=seed)
        data = data.subset(rows)
    samples = tuple(replace(s, digest=digest(s.image.read_bytes())) for s in data.samples)
    train, val = held_out(replace(data, samples=samples), seed)
    return train, val, test


def measure(name, arguments):
    """Return a row of the table; every seed draws other images and trains once per side."""
    backbone, is_random = open_backbone(name)
    plan = plan_freezing(backbone.module, train_from=arguments.train_from)
    arguments.trained[backbone.spec.name] = {
        key.removeprefix("trunk.") for key in trainable_parameters(backbone.module, plan)
    }
    seconds, correct = {ours: [], plain: []}, {ours: [], plain: []}
    seeds = arguments.seeds or (1 if is_random or "resnet50" in name else 3)
    for seed in range(seeds):
        parts = parts_of(arguments.folder, arguments.photos, seed)
        turn = (ours, plain) if seed % 2 == 0 else (plain, ours)
        for side in turn:
            elapsed, hits = side(backbone, parts, arguments, seed)
            seconds[side].append(elapsed)
            correct[side].append(hits)
            print(f"  {name} seed {seed} {side.__name__}: {elapsed:.1f} s", flush=True)

    def format_accuracy(side):
        if is_random:
            return "random weights"
        per_seed = ", ".join(f"{hits.mean():.3f}" for hits in correct[side])
        return f"{proportion_interval(np.concatenate(correct[side]))} ({per_seed})"

    ratio = mean(seconds[plain]) / mean(seconds[ours])
    times = [", ".join(f"{s:.1f}" for s in seconds[side]) for side in (plain, ours)]
    label = Path(name.partition("@")[0]).name if name.startswith("file:") else name
    sizes = "/".join(str(len(part)) for part in parts)
    return (
        f"| `{label}`, after {plan.last_constant_stage} | {sizes} | {times[0]} | {times[1]} "
        f"| **{ratio:.1f}** | {format_accuracy(plain)} | {format_accuracy(ours)} |"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default=os.environ.get("HEADSTART_BENCH_DATA"))
    parser.add_argument("--weights", default=os.environ.get("HEADSTART_BENCH_WEIGHTS"))
    parser.add_argument("--backbone", action="append", help="can be repeated")
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=0, help="by default 3, for ResNet-50 1")
    parser.add_argument("--train-from", default="last:1")
    parser.add_argument(
        "--channels-last", action="store_true", help="use channels_last in the plain loop"
    )
    arguments = parser.parse_args()
    if not arguments.folder:
        print("Skipped. Set HEADSTART_BENCH_DATA or pass FOLDER.")
        return
    names = arguments.backbone or ["embedded/efficientnet_lite0", "torchvision/resnet50"]
    if arguments.weights and not arguments.backbone:
        names.insert(1, f"file:{arguments.weights}@torchvision/resnet18")
    arguments.trained = {}
    rows = [measure(name, arguments) for name in names]
    print(f"\n{arguments.epochs} epochs of {arguments.photos} photos, {cores()} cores, float32.\n")
    print("| backbone | train/val/test | plain, s | ours, s | speed-up | plain | ours |")
    print("|---|---|---:|---:|---:|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
