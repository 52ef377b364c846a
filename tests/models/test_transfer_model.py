"""Predictions of any image source: in order, by name, and the same each time."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.backbones.backbone import load as load_backbone
from headstart.backbones.catalog import resolve
from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Dataset, Sample
from headstart.data.transforms.preprocess import Preprocess
from headstart.errors import DataError, LayoutError, UnknownNameError, UsageError
from headstart.evaluation.classification import evaluate
from headstart.features.extractor import Extractor
from headstart.metrics.selective import threshold_for_risk
from headstart.models.heads.linear import LinearHead
from headstart.models.saving import load, save
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import (
    Prediction,
    TransferModel,
    predictions_csv,
    predictions_json,
)

SMALL = Preprocess(
    resize=40, crop=32, interpolation="bilinear", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)
)
CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    spec = replace(resolve("torchvision/resnet18"), preprocess=SMALL)
    state = load_backbone(spec, pretrained=False).trunk.state_dict()
    blank = TransferModel(
        backbone=FrozenBackbone(spec=spec, state=state, origin={}),
        task=ClassificationTask(classes=CLASSES),
        engine="fp32",
    )
    # A random backbone says nearly the same of all images: the head is made for what differs.
    extractor = Extractor(cache=Cache(tmp_path_factory.mktemp("x")), engine="fp32", device="cpu")
    samples = [Sample(image=pixels) for pixels in random_pixels(40)]
    features = extractor.features(blank.backbone, samples).values.astype(np.float64)
    weight = np.random.default_rng(0).normal(size=(3, features.shape[1]))
    weight *= 2 / (features @ weight.T).std(axis=0)[:, None]
    bias = -np.median(features @ weight.T, axis=0)
    head = LinearHead(weight=weight.astype(np.float32), bias=bias.astype(np.float32))
    return replace(blank, head=head)


def random_pixels(n, shape=(48, 64, 3), seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, 256, shape) * rng.random()).astype(np.uint8) for _ in range(n)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for i, pixels in enumerate(random_pixels(12)):
        Image.fromarray(pixels).save(root / f"{i:02d}.png")
    return root


def chances(predictions):
    return np.array([list(prediction.probabilities.values()) for prediction in predictions])


@pytest.fixture(autouse=True)
def shared_cache(isolated, tmp_path_factory, monkeypatch):
    """Keep features between the tests: what is asked of them does not depend on it."""
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path_factory.getbasetemp() / "test_model"))


def ask(model, images, **options):
    return model.predict(images, engine="fp32", device="cpu", **options)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_predictions_are_those_of_torch(model, photos):
    import torch

    predictions = ask(model, photos)
    batch = np.stack([SMALL.resize_and_crop(pixels) for pixels in random_pixels(12)])
    scaled = torch.from_numpy(batch).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (SMALL.mean, SMALL.std))
    with torch.inference_mode():
        features = model.backbone.module((scaled - mean) / std)
        linear = torch.nn.functional.linear(
            features, torch.from_numpy(model.head.weight), torch.from_numpy(model.head.bias)
        )
        expected = linear.double().softmax(dim=1).numpy()
    np.testing.assert_allclose(chances(predictions), expected, atol=2e-3)
    assert [prediction.label for prediction in predictions] == [
        CLASSES[i] for i in expected.argmax(axis=1)
    ]
    assert (
        len({prediction.label for prediction in predictions}) == 3
    )  # else the order below proves nothing


def test_probabilities_are_by_name_and_sum_to_one(model, photos):
    for prediction in ask(model, photos):
        assert tuple(prediction.probabilities) == CLASSES
        assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-12)
        assert (
            prediction.probability
            == prediction.probabilities[prediction.label]
            == max(prediction.probabilities.values())
        )


def test_a_folder_and_its_paths_give_the_same_in_order(model, photos):
    paths = sorted(photos.iterdir())
    folder = ask(model, photos)
    assert [prediction.name for prediction in folder] == [str(path) for path in paths]
    for source in (str(photos), paths, [str(p) for p in paths], np.array([str(p) for p in paths])):
        assert ask(model, source) == folder
    assert ask(model, paths[::-1]) == folder[::-1]
    mixed, expected = ask(model, [paths[3], photos, str(paths[5])]), [folder[3], *folder, folder[5]]
    assert [(prediction.name, prediction.label) for prediction in mixed] == [
        (prediction.name, prediction.label) for prediction in expected
    ]
    # Rows of another number of images may differ in the last bit.
    np.testing.assert_allclose(chances(mixed), chances(expected), rtol=1e-9)


def test_the_same_image_gives_the_same_answer_whatever_holds_it(model, photos):
    path = photos / "03.png"
    pixels = random_pixels(12)[3]
    images = [
        path, str(path), path.read_bytes(), bytearray(path.read_bytes()), Image.open(path),
        Image.fromarray(pixels), pixels, pixels[None], pixels / 255,
        (pixels / 255).astype(np.float32), np.dstack([pixels, np.full((48, 64), 255, np.uint8)]),
        pixels.astype(np.uint16) * 257, np.asfortranarray(pixels), pixels[::-1][::-1],
    ]  # fmt: skip
    reference = chances(ask(model, path))
    for image in images:
        np.testing.assert_allclose(chances(ask(model, image)), reference, atol=1e-4)
    together = chances(ask(model, images))
    np.testing.assert_allclose(together, np.repeat(reference, len(images), axis=0), atol=1e-4)


def test_grey_is_three_equal_channels(model):
    grey = random_pixels(1, (48, 64))[0]
    expected = chances(ask(model, np.dstack([grey] * 3)))
    for image in (grey, grey[..., None], Image.fromarray(grey), png(grey)):
        np.testing.assert_allclose(chances(ask(model, image)), expected, atol=1e-4)


def test_a_stack_is_its_images(model, photos):
    stack = np.stack(random_pixels(12))
    predictions = ask(model, stack)
    assert len(predictions) == 12
    np.testing.assert_allclose(chances(predictions), chances(ask(model, photos)), atol=1e-4)


def test_nothing_gives_nothing(model):
    assert ask(model, []) == []
    assert ask(model, np.zeros((0, 8, 8, 3), np.uint8)) == []


def test_the_same_images_twice_give_the_same_bits(model, photos, tmp_path):
    once = ask(model, photos, cache=Cache(tmp_path / "a"))
    again = ask(model, photos, cache=Cache(tmp_path / "a"))
    elsewhere = ask(model, photos, cache=Cache(tmp_path / "b"))
    assert once == again == elsewhere


def test_the_models_own_engine_is_used_where_the_machine_has_it(model, photos, tmp_path):
    cache = Cache(tmp_path / "own")
    own = model.predict(photos, device="cpu", cache=cache)
    assert own == ask(model, photos, cache=cache)
    strange = replace(model, engine="openvino-on-the-moon")
    assert strange.predict(photos, device="cpu", cache=cache) == own


def test_a_wrong_path_names_the_nearest(model, photos):
    with pytest.raises(LayoutError, match=r"Did you mean.*03\.png"):
        ask(model, photos / "003.png")
    with pytest.raises(LayoutError, match=r"Did you mean.*photos"):
        ask(model, str(photos.with_name(photos.name.replace("photos", "photo"))))


@pytest.fixture
def damaged(photos, tmp_path):
    for path in photos.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = (photos / "05.png").read_bytes()
    (tmp_path / "05.png").write_bytes(content[: len(content) // 2])
    return tmp_path


def test_a_corrupt_file_is_refused_by_name(model, damaged):
    with pytest.raises(DataError, match=r"05\.png.*(damaged|truncated)"):
        ask(model, damaged)
    with pytest.raises(DataError, match="HTML"):
        ask(model, [b"<html>"])


def test_a_corrupt_file_is_left_out_when_asked(model, photos, damaged):
    predictions = ask(model, damaged, bad_files="skip")
    assert [Path(prediction.name).name for prediction in predictions] == [
        path.name for path in sorted(photos.iterdir()) if path.name != "05.png"
    ]
    expected = [prediction for prediction in ask(model, photos) if "05.png" not in prediction.name]
    np.testing.assert_allclose(chances(predictions), chances(expected), rtol=1e-9)


def test_an_unknown_policy_is_refused(model, photos):
    with pytest.raises(UnknownNameError, match="bad_files"):
        ask(model, photos, bad_files="ignore")


def test_an_unknown_engine_is_refused(model, photos):
    with pytest.raises(UnknownNameError, match="engine"):
        model.predict(photos, engine="fp8", device="cpu")


def test_a_model_that_is_not_fitted_predicts_nothing(model, photos):
    with pytest.raises(UsageError, match="fitted"):
        ask(replace(model, head=None), photos)


def test_a_multilabel_model_names_every_label_that_holds(model, photos):
    task = ClassificationTask(classes=CLASSES, kind="multilabel", thresholds=(0.0, 1.1, 0.5))
    for prediction in ask(replace(model, task=task), photos):
        assert (
            prediction.label == ("ant", "cat")
            if prediction.probabilities["cat"] >= 0.5
            else ("ant",)
        )
        assert prediction.probability == max(prediction.probabilities.values())


# ---------------------------------------------------------------- output


ODD = ("a,b", 'say "no"', "two\nlines", "größe 猫", "=1+1")


def test_csv_is_read_back_by_csv():
    predictions = [
        Prediction(
            name=f"folder, {i}/ü.png",
            label=ODD[i],
            probability=0.2 + i / 1000,
            probabilities=dict.fromkeys(ODD, 0.2 + i / 1000),
        )
        for i in range(5)
    ]
    rows = list(csv.reader(io.StringIO(predictions_csv(predictions))))
    shown = [*ODD[:4], "'=1+1"]  # never a formula
    assert rows[0] == ["image", "label", "probability", *shown]
    assert [row[:2] for row in rows[1:]] == [
        [prediction.name, name] for prediction, name in zip(predictions, shown, strict=True)
    ]
    numbers = np.array([[float(cell) for cell in row[2:]] for row in rows[1:]])
    np.testing.assert_allclose(numbers, [[0.2 + i / 1000] * 6 for i in range(5)], atol=1e-6)


def test_csv_and_json_of_nothing():
    assert predictions_csv([]) == "image,label,probability\n"
    assert predictions_json([]) == []


def test_csv_of_several_labels():
    prediction = Prediction(
        name="a", label=("x", "y"), probability=1.0, probabilities={"x": 1, "y": 1}
    )
    none = replace(prediction, label=())
    rows = list(csv.reader(io.StringIO(predictions_csv([prediction, none]))))
    assert [row[1] for row in rows[1:]] == ["x|y", ""]


def test_json_is_plain(model, photos):
    predictions = ask(model, photos)
    again = json.loads(json.dumps(predictions_json(predictions), allow_nan=False))
    assert [Prediction(**values) for values in again] == predictions


# ---------------------------------------------------------------- classes by name


@pytest.fixture
def extractor(tmp_path):
    return Extractor(cache=Cache(tmp_path / "cache"), engine="fp32", device="cpu")


def labelled(model, classes, labels):
    """Images that carry what the model says of them, in a data set that lists other classes."""
    pixels = random_pixels(40)
    answers = zip(pixels, ask(model, pixels), strict=True)
    samples = tuple(
        Sample(image=image, target=prediction.label)
        for image, prediction in answers
        if prediction.label in labels
    )
    assert {sample.target for sample in samples} == labels
    return Dataset(samples=samples, classes=classes)


@pytest.mark.parametrize(
    "classes", [("ant", "bee", "cat"), ("cat", "ant", "bee"), ("cat", "ant"), ("ant", "cat")]
)
def test_classes_are_matched_by_name(model, extractor, classes):
    data = labelled(model, classes, labels={"ant", "cat"})
    evaluation = evaluate(model, data, extractor=extractor)
    assert evaluation.metrics["accuracy"].value == 1
    assert [row.name for row in evaluation.per_class] == list(CLASSES)
    assert evaluation.confusion[1].sum() == 0  # no bee in the data
    assert np.trace(evaluation.confusion) == len(data)


def test_an_unknown_class_is_refused_with_its_name(model, extractor):
    data = labelled(model, ("ant", "cat"), labels={"ant", "cat"})
    unknown = replace(data.samples[0], target="emu")
    data = replace(data, samples=(*data.samples, unknown), classes=("ant", "cat", "emu"))
    with pytest.raises(DataError, match="emu"):
        evaluate(model, data, extractor=extractor)


def test_an_unknown_class_without_images_does_no_harm(model, extractor):
    data = labelled(model, ("aardvark", "ant", "cat"), labels={"ant", "cat"})
    assert evaluate(model, data, extractor=extractor).metrics["accuracy"].value == 1


@pytest.mark.parametrize("labels", [(), ("ant", "cat")])
def test_several_labels_are_not_evaluated_as_one(model, labels):
    data = Dataset(
        samples=(Sample(image=b"", target=("ant",)), Sample(image=b"", target=labels)),
        classes=CLASSES,
        kind="multilabel",
    )
    with pytest.raises(DataError, match="one class"):
        model.align_classes(data)
    assert model.align_classes(data.subset([0])).targets().tolist() == [0]
    several = replace(model, task=replace(model.task, kind="multilabel"))
    assert several.align_classes(data).targets().sum() == 1 + len(labels)


# ------------------------------------------------------------------------- abstaining


@pytest.fixture(scope="module")
def careful(model):
    """A model that answers about half of what it is asked."""
    logits = model.linear_head().logits
    extractor = Extractor(cache=Cache(), engine="fp32", device="cpu")
    samples = [Sample(image=pixels) for pixels in random_pixels(40)]
    sure = model.task.probabilities(logits(extractor.features(model.backbone, samples).values))
    chosen = threshold_for_risk(np.linspace(0, 1, 1000), np.arange(1000) > 300, max_risk=0.05)
    chosen = replace(chosen, threshold=float(np.median(sure.max(axis=1))))
    return replace(model, task=replace(model.task, max_risk=0.05, selected=chosen))


def test_what_is_too_unsure_abstains_and_keeps_its_class(model, careful):
    images = random_pixels(40)
    free, abstaining = ask(model, images), ask(careful, images)
    assert [prediction.label for prediction in free] == [
        prediction.label for prediction in abstaining
    ]
    assert {prediction.abstains for prediction in free} == {None}
    threshold = careful.task.selected.threshold
    assert [prediction.abstains for prediction in abstaining] == [
        prediction.probability < threshold for prediction in free
    ]
    assert {prediction.abstains for prediction in abstaining} == {False, True}


def test_files_say_who_abstains_only_where_somebody_may(model, careful):
    images = random_pixels(40)
    free, abstaining = ask(model, images), ask(careful, images)
    assert all("abstains" not in row for row in predictions_json(free))
    assert [row["abstains"] for row in predictions_json(abstaining)] == [
        p.abstains for p in abstaining
    ]
    assert "abstains" not in predictions_csv(free)
    rows = list(csv.DictReader(io.StringIO(predictions_csv(abstaining))))
    assert [row["abstains"] for row in rows] == [str(int(p.abstains)) for p in abstaining]
    assert [float(row["bee"]) for row in rows] == pytest.approx(
        [p.probabilities["bee"] for p in abstaining], abs=1e-6
    )


def test_a_model_that_may_abstain_is_saved_and_loaded(careful, tmp_path):
    save(careful, tmp_path / "m")
    again = load(tmp_path / "m")
    assert again.task == careful.task
    images = random_pixels(5)
    assert ask(again, images) == ask(careful, images)
