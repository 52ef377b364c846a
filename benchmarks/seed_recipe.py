"""The recipe of the field, written out plainly: what most tutorials on transfer learning do.

A pretrained ResNet-18, all of it frozen, a new layer for the classes, Adam, and every image
decoded and sent through the whole network anew in every epoch. main_job.py runs it beside
`headstart fit`, on the same images and the same split.

    python benchmarks/seed_recipe.py FOLDER --weights resnet18.pth --held-out predictions.csv
"""

import time

BEGIN = time.perf_counter()

import argparse  # noqa: E402 - the clock starts before the imports, as a user's does
import csv  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402
from torchvision import models, transforms  # noqa: E402

LOOK = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)


class Images(Dataset):
    """Images whose folder is their class."""

    def __init__(self, paths, classes):
        self.paths = paths
        self.targets = [classes.index(path.parent.name) for path in paths]

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        with Image.open(self.paths[index]) as image:
            return LOOK(image.convert("RGB")), self.targets[index]


def split(folder, held_out):
    """Paths of the training and of the held-out part: what the table names is held out."""
    with Path(held_out).open(newline="", encoding="utf-8") as table:
        named = {Path(row["image"]).resolve() for row in csv.DictReader(table)}
    paths = sorted(path.resolve() for path in Path(folder).glob("*/*") if path.is_file())
    parts = [p for p in paths if p not in named], [p for p in paths if p in named]
    if len(parts[1]) != len(named) or not parts[0]:
        raise SystemExit(f"Expected {len(named)} held-out images in {folder}, got {len(parts[1])}.")
    return parts


def build(weights, n_classes):
    model = models.resnet18()
    model.load_state_dict(torch.load(weights, weights_only=True))
    for parameter in model.parameters():
        parameter.requires_grad = False
    model.fc = torch.nn.Linear(model.fc.in_features, n_classes)
    return model


def train_epoch(model, loader, optimizer):
    model.train()
    for images, targets in loader:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), targets)
        loss.backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model, loader):
    model.eval()
    right = sum((model(x).argmax(1) == y).sum().item() for x, y in loader)
    return right / len(loader.dataset)


def main():
    if len(sys.argv) == 1:
        print("Skipped: main_job.py runs this with a split.")
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="class folders")
    parser.add_argument("--weights", required=True, help="ImageNet weights of ResNet-18 (.pth)")
    parser.add_argument("--held-out", required=True, help="predictions.csv of a headstart run")
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    train, test = split(arguments.folder, arguments.held_out)
    classes = sorted({path.parent.name for path in train})
    options = {"batch_size": 32, "num_workers": 2}
    train_loader = DataLoader(Images(train, classes), shuffle=True, **options)
    test_loader = DataLoader(Images(test, classes), **options)
    model = build(arguments.weights, len(classes))
    optimizer = torch.optim.Adam(model.fc.parameters(), lr=1e-3)
    reached = []
    for _ in range(arguments.epochs):
        train_epoch(model, train_loader, optimizer)
        reached.append(accuracy(model, test_loader))
    found = {
        "seconds": time.perf_counter() - BEGIN,
        "accuracy": reached[-1],
        "accuracies": reached,
        "train": len(train),
        "held_out": len(test),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
