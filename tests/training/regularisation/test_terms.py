"""Terms of the loss against the libraries' own networks and formulas written out in NumPy."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import timm
import torch

from headstart.backbones.backbone import load
from headstart.backbones.catalog import resolve
from headstart.backbones.freezing import plan_freezing
from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Dataset, Sample
from headstart.data.transforms.augment import Augmentation
from headstart.data.transforms.preprocess import Preprocess
from headstart.errors import UsageError
from headstart.evaluation.drift import measure_drift
from headstart.features.extractor import Extractor, SplitPoint
from headstart.methods.finetune import Finetune
from headstart.models.heads.linear import LinearHead
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel
from headstart.training.adapters import add_lora, add_stoch_norm
from headstart.training.inputs import InputSource
from headstart.training.job import Score
from headstart.training.network import Network
from headstart.training.optim import Training
from headstart.training.regularisation.penalties import Regularisation
from headstart.training.regularisation.terms import penalty_factory
from headstart.training.settings import Settings
from headstart.training.trainer import objective_for, train_network

SMALL = Preprocess(
    resize=36, crop=32, interpolation="bilinear", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)
)
HEADS = {
    "timm/test_resnet": "fc",
    "timm/test_efficientnet": "classifier",
    "timm/test_vit": "head",
}
EVERY = Regularisation(
    l2_sp=0.3, l2_sp_head=0.2, delta=0.01, bss=0.5, bss_k=2, co_tuning=0.7, ewc=3.0, lwf=1.5
)


def make_backbone(name="timm/test_resnet", head=True):
    spec = replace(resolve(name), preprocess=SMALL)
    backbone = load(spec, pretrained=False, seed=0)
    generator = torch.Generator().manual_seed(0)
    classifier = {
        f"{HEADS[name]}.weight": 0.05 * torch.randn(10, backbone.width, generator=generator),
        f"{HEADS[name]}.bias": torch.randn(10, generator=generator),
    }
    state = {k: v.clone() for k, v in backbone.trunk.state_dict().items()}
    for key, tensor in state.items():
        # timm starts the last normalisation of a block at 0: nothing behind it would matter.
        if tensor.ndim == 1 and key.endswith(("weight", "bias")):
            state[key] = tensor + 0.5 * torch.rand(tensor.shape, generator=generator)
    return FrozenBackbone(spec=spec, state=state | (classifier if head else {}), origin={})


def make_data(n=12, classes=("blue", "red"), seed=0):
    """Images that are bluish or reddish, with noise."""
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(n):
        image = rng.integers(0, 120, (1, 1, 3)) + rng.integers(0, 56, (36, 36, 3))
        image[..., 2 if i % 2 == 0 else 0] += 60
        samples.append(Sample(image=image.astype(np.uint8), target=("blue", "red")[i % 2]))
    return Dataset(samples=tuple(samples), classes=classes)


TRUNK, DATA = make_backbone(), make_data()
ROWS = np.array([7, 0, 3, 10, 4])


@pytest.fixture
def extractor(tmp_path):
    return Extractor(cache=Cache(tmp_path / "kept"), engine="fp32", device="cpu", workers=1)


def make_network(backbone=TRUNK, train_from="last:1", stop=None, change=None, **choices):
    module = backbone.copy()
    if change is not None:
        change(module)
    head = LinearHead.random(module.width, 2, seed=0)
    split_point = None if stop is None else SplitPoint(engine="fp32", stop=stop)
    return Network(
        module,
        head,
        plan_freezing(module, train_from=train_from, **choices),
        split_point=split_point,
    )


def read(backbone, extractor, data=DATA, stop=None):
    split_point = None if stop is None else SplitPoint(engine="fp32", stop=stop)
    input_source = InputSource(backbone=backbone, extractor=extractor, split_point=split_point)
    return input_source.of(data.samples, Augmentation(), epochs=1)


def move(network, size=0.3):
    """Move all that trains, head included, in a direction that is always the same."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for group in network.parameter_groups(1.0):
            for p in group["params"]:
                p.add_(size * torch.randn(p.shape, generator=generator) * p.abs().mean())


def evaluate(network, penalty, inputs, rows=ROWS):
    x = network.tensor(inputs.fetch(1, rows))
    return penalty(x, network.outputs(x), rows)


def started(extractor, settings, backbone=TRUNK, data=DATA, stop=None, **options):
    network, inputs = (
        make_network(backbone, stop=stop, **options),
        read(backbone, extractor, data, stop),
    )
    return network, penalty_factory(network, backbone, data, settings)(inputs), inputs


# ------------------------------------------------------------------------------- at the start


def test_nothing_asked_is_nothing_bound():
    assert penalty_factory(make_network(), TRUNK, DATA, Regularisation()) is None


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("term", ["l2_sp", "ewc", "delta", "lwf"])
def test_a_network_at_its_start_is_not_held_back_and_then_it_is(name, term, extractor):
    backbone = make_backbone(name)
    network, penalty, inputs = started(extractor, Regularisation(**{term: 1.0}), backbone)
    assert evaluate(network, penalty, inputs).item() == pytest.approx(0, abs=1e-6)
    move(network)
    assert evaluate(network, penalty, inputs).item() > 1e-4


@pytest.mark.parametrize("term", ["l2_sp", "delta", "lwf", "ewc"])
def test_the_source_is_the_network_after_its_statistics_were_adapted(term, extractor):
    network, inputs = make_network(batch_norm="adapt"), read(TRUNK, extractor)
    make = penalty_factory(network, TRUNK, DATA, Regularisation(**{term: 1.0}))
    before = network.state()
    network.adapt(lambda rows: inputs.fetch(1, rows), len(DATA))
    assert any(not torch.equal(before[k], v) for k, v in network.state().items())
    assert evaluate(network, make(inputs), inputs).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "only"),
    [
        (lambda b: add_lora(b, rank=2, seed=0), "lora"),
        (lambda b: add_stoch_norm(b, 0.5), "all"),
    ],
    ids=["lora", "stoch_norm"],
)
def test_adapters_are_held_like_weights(change, only, extractor):
    network, penalty, inputs = started(extractor, EVERY, change=change, only=only)
    start = evaluate(network, penalty, inputs).item()
    move(network)
    with torch.no_grad():
        for p in network.parameter_groups(1.0)[0]["params"]:
            p.add_(0.05)
    assert evaluate(network, penalty, inputs).item() > start


# -------------------------------------------------------------------- against the formulas


def image_batch(rows):
    pixels = np.stack([SMALL.resize_and_crop(DATA.samples[row].image) for row in rows])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (SMALL.mean, SMALL.std))
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255.0 - mean) / std


def library_network(state):
    """timm's own network with its classifier, the tensors of a backbone put in."""
    model = timm.create_model("test_resnet", num_classes=10)
    model.load_state_dict({**TRUNK.state, **state})
    return model.eval()


def look(state, rows):
    """What layer4 gives, its pooled values, and the classifier's logits, as arrays."""
    model, outputs = library_network(state), {}
    model.layer4.register_forward_hook(lambda _m, _x, y: outputs.update(maps=y.numpy()))
    model.global_pool.register_forward_hook(lambda _m, _x, y: outputs.update(pooled=y.numpy()))
    with torch.inference_mode():
        logits = model(image_batch(rows)).numpy()
    return outputs["maps"], outputs["pooled"], logits.astype(np.float64)


def log_softmax(z):
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def expected_l2_sp(before, after, head):
    return 0.5 * sum(float(((after[k] - before[k]) ** 2).sum()) for k in layer4(before))


def layer4(state):
    return [k for k in state if k.startswith("layer4") and k.endswith(("weight", "bias"))]


def expected_l2_sp_head(before, after, head):
    return 0.5 * float((head**2).sum())


def expected_delta(before, after, head):
    new, old = look(after, ROWS)[0], look(before, ROWS)[0]
    return ((new - old) ** 2).sum(axis=(2, 3)).mean(axis=1).mean()


def expected_bss(before, after, head):
    values = np.linalg.svd(look(after, ROWS)[1], compute_uv=False)
    return (values[-2:] ** 2).sum()


def expected_lwf(before, after, head):
    old, new = (log_softmax(look(s, ROWS)[2] / 3.0) for s in (before, after))
    return 9.0 * (np.exp(old) * (old - new)).sum(axis=1).mean()


def expected_co_tuning(before, after, head):
    answers = np.exp(log_softmax(look(before, np.arange(len(DATA)))[2]))
    targets = DATA.targets()
    related = np.stack([answers[targets == k].mean(axis=0) for k in range(2)])
    return -(related[targets[ROWS]] * log_softmax(look(after, ROWS)[2])).sum(axis=1).mean()


def expected_ewc(before, after, head):
    model = library_network(before)
    named = {k: p for k, p in model.named_parameters() if k in layer4(before)}
    total = dict.fromkeys(named, 0)
    for row in range(len(DATA)):
        logits = model(image_batch([row]))
        loss = torch.nn.functional.cross_entropy(logits, logits.argmax(dim=1))
        for k, g in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
            total[k] = total[k] + g.square() / len(DATA)
    return 0.5 * sum(float((total[k] * (after[k] - before[k]) ** 2).sum()) for k in named)


EXPECTED = {
    "l2_sp": expected_l2_sp,
    "l2_sp_head": expected_l2_sp_head,
    "delta": expected_delta,
    "bss": expected_bss,
    "lwf": expected_lwf,
    "co_tuning": expected_co_tuning,
    "ewc": expected_ewc,
}


@pytest.mark.parametrize("term", EXPECTED)
@pytest.mark.parametrize("stop", [None, "layer3"])
def test_after_a_move_a_term_is_its_formula(term, stop, extractor):
    settings = Regularisation(**{term: 0.6}, bss_k=2, temperature=3.0)
    network, penalty, inputs = started(extractor, settings, stop=stop)
    before = network.state()
    move(network)
    expected = EXPECTED[term](before, network.state(), network.head.weight)
    assert expected > 1e-3
    assert evaluate(network, penalty, inputs).item() == pytest.approx(0.6 * expected, rel=1e-3)


def test_terms_add_up(extractor):
    network, penalty, inputs = started(extractor, EVERY)
    parts = []
    for term in EXPECTED:
        alone = Regularisation(**{term: getattr(EVERY, term)}, bss_k=2)
        parts.append(penalty_factory(network, TRUNK, DATA, alone)(inputs))
    move(network)
    values = [evaluate(network, part, inputs).item() for part in parts]
    assert evaluate(network, penalty, inputs).item() == pytest.approx(sum(values), rel=1e-4)


# ------------------------------------------------------------------------- what it may touch


def test_gradients_reach_what_trains_and_nothing_else(extractor):
    network, penalty, inputs = started(extractor, EVERY)
    move(network)
    network.set_training(1)
    evaluate(network, penalty, inputs).backward()
    for name, p in network.backbone.named_parameters():
        moves = name.startswith("trunk.layer4")
        assert (p.grad is not None) == moves, name
        assert not moves or p.grad.abs().max() > 0, name
    # The data's classes are the head's: of the terms, only its decay asks it.
    torch.testing.assert_close(network.layer.weight.grad, 0.2 * network.layer.weight.detach())


def test_the_source_runs_once_a_batch_and_only_where_it_is_asked(extractor, monkeypatch):
    calls, make = [], Network.frozen_copy

    def counted(network):
        run = make(network)
        return lambda x: calls.append(torch.is_grad_enabled()) or run(x)

    monkeypatch.setattr(Network, "frozen_copy", counted)
    network, penalty, inputs = started(extractor, EVERY)
    network.set_training(1)
    assert calls == []
    for _ in range(2):
        evaluate(network, penalty, inputs)
    assert calls == [False, False]
    monkeypatch.setattr(Network, "frozen_copy", lambda network: pytest.fail("the source ran"))
    near = Regularisation(l2_sp=1.0, l2_sp_head=1.0, bss=1.0, ewc=1.0, co_tuning=1.0)
    network, penalty, inputs = started(extractor, near)
    evaluate(network, penalty, inputs)


def test_the_fisher_information_reads_few_images_always_the_same(extractor, monkeypatch):
    monkeypatch.setattr("headstart.training.regularisation.terms.N_FISHER_IMAGES", 4)
    fetched, values = [], []
    for seed in range(2):
        network, inputs = make_network(), read(TRUNK, extractor)
        np.random.seed(seed)  # noqa: NPY002 - must not matter
        torch.manual_seed(seed)
        fetch = inputs.fetch
        monkeypatch.setattr(inputs, "fetch", lambda e, r, f=fetch: fetched.append(r) or f(e, r))
        penalty = penalty_factory(network, TRUNK, DATA, Regularisation(ewc=1.0))(inputs)
        move(network)
        values.append(evaluate(network, penalty, inputs).item())
    fishers = [rows for rows in fetched if len(rows) == 4]
    assert len(fetched) == 4
    np.testing.assert_array_equal(*fishers)
    assert values[0] == values[1] > 0


def test_a_class_without_images_is_related_to_nothing(extractor):
    wide = replace(DATA, classes=("azure", "blue", "red"))
    values = []
    for data in (DATA, wide):
        network, penalty, inputs = started(extractor, Regularisation(co_tuning=1.0), data=data)
        values.append(evaluate(network, penalty, inputs).item())
    assert values[0] == values[1]


# --------------------------------------------------------------------------- what it refuses


DEEP = {"fc.weight": torch.zeros(10, 95), "fc.bias": torch.zeros(10)}


@pytest.mark.parametrize("term", ["ewc", "lwf", "co_tuning"])
@pytest.mark.parametrize(
    ("backbone", "reason"),
    [
        (make_backbone(head=False), r"no original classifier\. Leave out --"),
        (replace(TRUNK, state={**TRUNK.state, **DEEP}), "more than one linear layer"),
    ],
    ids=["none", "wide"],
)
def test_a_missing_classifier_is_said_before_training(term, backbone, reason):
    with pytest.raises(UsageError, match=f"`{term}`.*{reason}"):
        penalty_factory(make_network(), backbone, DATA, Regularisation(**{term: 1.0}))


@pytest.mark.parametrize("term", sorted({*EXPECTED} - {"l2_sp_head"}))
def test_a_head_alone_has_nothing_to_hold(term):
    with pytest.raises(UsageError, match=f"`{term}`.*the head alone"):
        penalty_factory(make_network(train_from="head"), TRUNK, DATA, Regularisation(**{term: 1.0}))


def test_a_head_alone_may_decay(extractor):
    settings = Regularisation(l2_sp_head=2.0)
    network, penalty, inputs = started(extractor, settings, train_from="head")
    weight = network.head.weight
    assert evaluate(network, penalty, inputs).item() == pytest.approx((weight**2).sum())


def test_co_tuning_needs_one_class_an_image():
    data = replace(DATA, kind="multilabel")
    with pytest.raises(UsageError, match="several labels"):
        penalty_factory(make_network(), TRUNK, data, Regularisation(co_tuning=1.0))


# ------------------------------------------------------------------------------ in training


STEPS = Training(optimiser="sgd", epochs=4, batch_size=6, schedule="constant", patience=10)


def trained(extractor, settings, **options):
    network = make_network(learning_rate=0.02)
    training_settings = Settings(training=STEPS, head_learning_rate=0.02, **options)
    input_source = InputSource(backbone=TRUNK, extractor=extractor)
    penalty = penalty_factory(network, TRUNK, DATA, settings)
    objective = objective_for((DATA, make_data(8, seed=5)), training_settings, backbone=TRUNK)
    train_network(network, objective, training_settings, input_source=input_source, penalty=penalty)
    return network.state()


def distance(state):
    return sum(float((state[k] - TRUNK.state[k]).square().sum()) for k in layer4(state)) ** 0.5


def test_the_stronger_the_anchor_the_nearer_the_end(extractor, monkeypatch):
    # Whatever epoch scores best, the last one is kept: the anchor alone is to decide.
    late = iter(range(10_000))
    monkeypatch.setattr(
        "headstart.training.objectives.ClassObjective.score", lambda *a: Score(float(next(late)), 0)
    )
    ends = [distance(trained(extractor, Regularisation(l2_sp=a))) for a in (0.0, 0.1, 10.0)]
    assert ends[-1] > 0
    for free, anchored in pairwise(ends):
        assert anchored < free * 0.999


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_with_every_term_what_is_constant_stays_so(mixup, extractor):
    state = trained(extractor, EVERY, mixup=mixup)
    for name, tensor in state.items():
        if not name.startswith("layer4"):
            assert torch.equal(tensor, TRUNK.state[name]), name


def test_the_less_of_the_fine_tuned_network_the_less_drift(extractor, monkeypatch):
    late = iter(range(10_000))
    monkeypatch.setattr(
        "headstart.training.objectives.ClassObjective.score", lambda *a: Score(float(next(late)), 0)
    )
    model = TransferModel(backbone=TRUNK, task=ClassificationTask(classes=DATA.classes))
    drifts = []
    for share in (1.0, 0.5, 0.0):
        method = Finetune(training=STEPS, learning_rate=0.05, wise_ft=share)
        tuned = method.fit(model, DATA, make_data(8, seed=5), extractor=extractor)
        drifts.append(measure_drift(TRUNK, tuned.backbone, DATA.samples).stages[-1])
    for larger, smaller in pairwise(drifts):
        assert smaller.cosine > larger.cosine
        assert smaller.relative_weight_change < larger.relative_weight_change
    assert (drifts[-1].cosine, drifts[-1].relative_weight_change) == (1.0, 0.0)
