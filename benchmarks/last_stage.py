"""Last-stage fine-tuning beside the plain loop that runs the frozen part in every epoch.

Plain: torchvision's or timm's network, everything before the last stage frozen, all of it in
inference mode as ours is by default, a new layer for the classes, AdamW, the whole network run on
every image in every epoch, from JPEG through a DataLoader with 2 workers. Ours: ``Finetune``
with an empty cache, so that the one pass of the frozen part counts. Both: float32, the same
images, trained parameters, rates, schedule, clipping, batch size and epochs, judged once an
epoch on the same held-out 15 % and kept as they were in the best epoch. Seconds run from the
weights in memory to the trained network; accuracy is that on images neither has seen. The sides
take turns. Without weights of its own, ResNet-50 runs with random ones: then only seconds count.

    python benchmarks/last_stage.py [FOLDER] [--backbone NAME ...] [--photos 1000] [--epochs 10]

FOLDER holds one folder a class; by default HEADSTART_BENCH_DATA. ResNet-18 runs where
HEADSTART_BENCH_WEIGHTS (or --weights) names torchvision's weights of it.
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
from headstart.backbones.freezing import plan, trained  # noqa: E402
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

BATCH, WORKERS, TESTED = 32, 2, 300
RATE, HEAD_RATE, DECAY, WARM_UP, CLIP = 1e-4, 1e-3, 0.01, 0.1, 1.0


class Photos(Dataset):
    """Images as torchvision's transforms leave them, with their classes' numbers."""

    def __init__(self, data, expects):
        self.paths = [sample.image for sample in data.samples]
        self.targets = data.targets().tolist()
        self.look = transforms.Compose(
            [
                transforms.Resize(
                    expects.resize, transforms.InterpolationMode(expects.interpolation)
                ),
                transforms.CenterCrop(expects.crop),
                transforms.ToTensor(),
                transforms.Normalize(expects.mean, expects.std),
            ]
        )

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        with Image.open(self.paths[index]) as image:
            return self.look(image.convert("RGB")), self.targets[index]


def network(backbone, n_classes):
    """The library's own network with the backbone's weights and a new last layer."""
    library, _, name = backbone.spec.architecture.partition("/")
    if library == "timm":
        import timm

        model = timm.create_model(name, num_classes=n_classes, **dict(backbone.spec.model_options))
        head = model.get_classifier()
    else:
        from torchvision import models

        model = models.get_model(name, num_classes=n_classes)
        head = model.fc
    mine = {k: v for k, v in backbone.state.items() if k in dict(model.named_parameters())}
    mine |= {k: v for k, v in backbone.state.items() if k in dict(model.named_buffers())}
    heads = {id(p) for p in head.parameters()}
    of_head = {name for name, p in model.named_parameters() if id(p) in heads}
    missing = model.load_state_dict(
        {k: v for k, v in mine.items() if k not in of_head}, strict=False
    ).missing_keys
    left = {k for k in missing if not k.endswith("num_batches_tracked")} - of_head
    if left:
        raise SystemExit(f"Expected weights for all of {name}, got none for {sorted(left)}.")
    return model, head


def groups_of(model, head, names):
    """AdamW's groups: the last stage and the head, vectors without weight decay."""
    for parameter in model.parameters():
        parameter.requires_grad = False
    stage = [p for name, p in model.named_parameters() if name in names]
    found = []
    for parameters, rate in ((stage, RATE), (list(head.parameters()), HEAD_RATE)):
        for parameter in parameters:
            parameter.requires_grad = True
        matrices = [p for p in parameters if p.ndim > 1]
        vectors = [p for p in parameters if p.ndim <= 1]
        found.append({"params": matrices, "lr": rate, "weight_decay": DECAY})
        found.append({"params": vectors, "lr": rate, "weight_decay": 0.0})
    return [group for group in found if group["params"]]


def schedule(optimiser, steps):
    """Linear warm-up, then half a cosine."""
    warm = round(WARM_UP * steps)

    def share(step):
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    return torch.optim.lr_scheduler.LambdaLR(optimiser, share)


@torch.no_grad()
def answers(model, loader):
    return torch.cat([model(x).argmax(1) == y for x, y in loader]).numpy()


def plain(backbone, parts, arguments, seed):
    """Seconds, and whether each test image is right."""
    learn, select, test = parts
    torch.manual_seed(seed)
    begin = time.perf_counter()
    model, head = network(backbone, len(learn.classes))
    start = LinearHead.random(head.in_features, len(learn.classes), seed=seed)  # ours has it too
    head.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in start.state().items()})
    model.eval()
    if arguments.channels_last:
        model.to(memory_format=torch.channels_last)
    names = arguments.trained[backbone.spec.name]
    optimiser = torch.optim.AdamW(groups_of(model, head, names))
    moving = [p for group in optimiser.param_groups for p in group["params"]]
    options = {"batch_size": BATCH, "num_workers": WORKERS}
    loader = DataLoader(Photos(learn, backbone.spec.preprocess), shuffle=True, **options)
    judging = DataLoader(Photos(select, backbone.spec.preprocess), **options)
    pace = schedule(optimiser, arguments.epochs * len(loader))
    best, kept = -1.0, {}
    for _ in range(arguments.epochs):
        for images, targets in loader:
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(images), targets).backward()
            torch.nn.utils.clip_grad_norm_(moving, CLIP)
            optimiser.step()
            pace.step()
        reached = answers(model, judging).mean()
        if reached > best:
            best, kept = reached, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    seconds = time.perf_counter() - begin
    return seconds, answers(model, DataLoader(Photos(test, backbone.spec.preprocess), **options))


def ours(backbone, parts, arguments, seed):
    """Seconds, and whether each test image is right."""
    learn, select, test = parts
    fresh = replace(backbone)  # builds its module anew, as the other side does
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
    blank = TransferModel(backbone=fresh, task=ClassificationTask(classes=learn.classes))
    with tempfile.TemporaryDirectory() as folder, Cache(Path(folder)) as cache:
        extractor = Extractor(cache=cache, engine="fp32", device="cpu")
        begin = time.perf_counter()
        model = method.fit(blank, learn, select, extractor=extractor)
        seconds = time.perf_counter() - begin
        chances = model.predict_probabilities(test.samples, extractor=extractor)
    return seconds, chances.argmax(1) == test.targets()


def open_backbone(name):
    """The backbone, and whether its weights are random because there are none."""
    try:
        return FrozenBackbone.open(name, offline=True), False
    except WeightsNotFoundError:
        made = load(resolve(name, offline=True), pretrained=False, seed=0).state_dict()
        state = {key.removeprefix("trunk."): tensor for key, tensor in made.items()}
        return FrozenBackbone(spec=resolve(name, offline=True), state=state, origin={}), True


def parts_of(folder, photos, seed):
    """To learn from, to select on, to test on: drawn by class."""
    data = read_dataset(folder)
    rest, tested = holdout(data.targets(), fraction=TESTED / len(data), seed=seed)
    data, test = data.subset(rest), data.subset(tested)
    if photos < len(data):
        _, drawn = holdout(data.targets(), fraction=photos / len(data), seed=seed)
        data = data.subset(drawn)
    named = [replace(s, digest=digest(s.image.read_bytes())) for s in data.samples]
    learn, select = held_out(replace(data, samples=tuple(named)), seed)
    return learn, select, test


def measure(name, arguments):
    """A row of the table; every seed draws images anew and is one whole training."""
    backbone, is_random = open_backbone(name)
    what = plan(backbone.module, train_from=arguments.train_from)
    arguments.trained[backbone.spec.name] = {
        key.removeprefix("trunk.") for key in trained(backbone.module, what)
    }
    seconds, right = {ours: [], plain: []}, {ours: [], plain: []}
    seeds = arguments.seeds or (1 if is_random or "resnet50" in name else 3)
    for seed in range(seeds):
        parts = parts_of(arguments.folder, arguments.photos, seed)
        turn = (ours, plain) if seed % 2 == 0 else (plain, ours)
        for side in turn:
            took, correct = side(backbone, parts, arguments, seed)
            seconds[side].append(took)
            right[side].append(correct)
            print(f"  {name} seed {seed} {side.__name__}: {took:.1f} s", flush=True)

    def told(side):
        if is_random:
            return "random weights"
        each = ", ".join(f"{r.mean():.3f}" for r in right[side])
        return f"{proportion_interval(np.concatenate(right[side]))} ({each})"

    ratio = mean(seconds[plain]) / mean(seconds[ours])
    times = [", ".join(f"{s:.1f}" for s in seconds[side]) for side in (plain, ours)]
    label = Path(name.partition("@")[0]).name if name.startswith("file:") else name
    sizes = "/".join(str(len(part)) for part in parts)
    return (
        f"| `{label}`, behind {what.boundary} | {sizes} | {times[0]} | {times[1]} "
        f"| **{ratio:.1f}** | {told(plain)} | {told(ours)} |"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default=os.environ.get("HEADSTART_BENCH_DATA"))
    parser.add_argument("--weights", default=os.environ.get("HEADSTART_BENCH_WEIGHTS"))
    parser.add_argument("--backbone", action="append", help="may be given several times")
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=0, help="by default 3, for ResNet-50 1")
    parser.add_argument("--train-from", default="last:1")
    parser.add_argument("--channels-last", action="store_true", help="for the plain side too")
    arguments = parser.parse_args()
    if not arguments.folder:
        print("Skipped: set HEADSTART_BENCH_DATA.")
        return
    names = arguments.backbone or ["embedded/efficientnet_lite0", "torchvision/resnet50"]
    if arguments.weights and not arguments.backbone:
        names.insert(1, f"file:{arguments.weights}@torchvision/resnet18")
    arguments.trained = {}
    rows = [measure(name, arguments) for name in names]
    print(f"\n{arguments.epochs} epochs of {arguments.photos} photos, {cores()} cores, float32.\n")
    print("| backbone | learn/select/test | plain, s | ours, s | times as fast | plain | ours |")
    print("|---|---|---:|---:|---:|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
