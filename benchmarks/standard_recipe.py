"""The standard recipe of transfer learning, as in most tutorials.

A pretrained ResNet-18 with all parameters frozen, a new layer for the classes and Adam. Every
epoch decodes every image and runs the complete network on it. fit_speed.py compares it with
`headstart fit` on the same images and the same split.

    python benchmarks/standard_recipe.py FOLDER --weights resnet18.pth --held-out predictions.csv
"""

import time

STARTED_AT = time.perf_counter()

import argparse  # noqa: E402 - the time includes the imports, as it does for a user
import csv  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402
from torchvision import models, transforms  # noqa: E402

TRANSFORM = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)


class Images(Dataset):
    """Images in class folders."""

    def __init__(self, paths, classes):
        self.paths = paths
        self.targets = [classes.index(path.parent.name) for path in paths]

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        with Image.open(self.paths[index]) as image:
            return TRANSFORM(image.convert("RGB")), self.targets[index]


def split(folder, predictions):
    """Paths of the training and the test images; the table of predictions lists the test images."""
    with Path(predictions).open(newline="", encoding="utf-8") as table:
        test_paths = {Path(row["image"]).resolve() for row in csv.DictReader(table)}
    paths = sorted(path.resolve() for path in Path(folder).glob("*/*") if path.is_file())
    train = [path for path in paths if path not in test_paths]
    test = [path for path in paths if path in test_paths]
    if len(test) != len(test_paths) or not train:
        raise SystemExit(
            f"Expected {len(test_paths)} test images and others to train on in {folder}, got "
            f"{len(test)} and {len(train)}. Pass the predictions.csv of a run with this folder."
        )
    return train, test


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
    correct = sum((model(x).argmax(1) == y).sum().item() for x, y in loader)
    return correct / len(loader.dataset)


def main():
    if len(sys.argv) == 1:
        print("Skipped. fit_speed.py runs this with a split.")
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
    accuracies = []
    for _ in range(arguments.epochs):
        train_epoch(model, train_loader, optimizer)
        accuracies.append(accuracy(model, test_loader))
    result = {
        "seconds": time.perf_counter() - STARTED_AT,
        "accuracy": accuracies[-1],
        "accuracies": accuracies,
        "train": len(train),
        "held_out": len(test),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
