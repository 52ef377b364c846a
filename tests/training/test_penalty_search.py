"""The search for the penalty against scikit-learn."""

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold

from headstart.training import logistic_regression, penalty_search
from headstart.training.logistic_regression import principal_basis, solve_path
from headstart.training.penalty_search import Problem, search_penalty

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4)


def clouds(n=150, d=12, k=3, noise=2.0, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.permutation(np.arange(n) % k)
    return rng.normal(size=(k, d))[targets] + noise * rng.normal(size=(n, d)), targets


def folds_of(targets, n_folds=4):
    splitter = StratifiedKFold(n_folds, shuffle=True, random_state=0)
    return list(splitter.split(np.zeros(len(targets)), targets))


def scikit(features, targets, penalty, rows, weights=None):
    """The same problem in scikit-learn's terms, on centred and scaled features."""
    scale = np.sqrt(np.square(features - features.mean(axis=0)).sum() / len(features))
    x = (features - features.mean(axis=0)) / scale
    weights = np.ones(len(targets)) if weights is None else weights
    model = LogisticRegression(C=1 / (penalty * weights[rows].sum()), tol=1e-9, max_iter=20_000)
    model.fit(x[rows], targets[rows], sample_weight=weights[rows])
    return model, x


@pytest.mark.parametrize("k", [2, 3])
def test_candidates_are_scored_as_scikit_learn_scores_them(k):
    features, targets = clouds(k=k)
    folds = folds_of(targets)
    problem = Problem.of(targets, n_classes=k, kind="multiclass")
    search = search_penalty(features, problem, folds, penalties=PENALTIES)
    for penalty, loss in search.candidates:
        held_out_accuracy = np.zeros((len(targets), k))
        for train, test in folds:
            model, x = scikit(features, targets, penalty, train)
            held_out_accuracy[test] = model.predict_proba(x[test])
        assert loss == pytest.approx(log_loss(targets, held_out_accuracy), abs=1e-4)
    assert search.penalty == min(search.candidates, key=lambda pair: pair[1])[0]


@pytest.mark.parametrize("k", [2, 4])
def test_head_acts_on_raw_features_as_scikit_learn_does(k):
    features, targets = clouds(k=k)
    features = 5 * features + 30
    problem = Problem.of(targets, n_classes=k, kind="multiclass")
    search = search_penalty(features, problem, folds_of(targets), penalties=PENALTIES)
    model, x = scikit(features, targets, search.penalty, np.arange(len(targets)))
    logits = search.head.logits(features)
    ours = np.exp(logits - logits.max(axis=1, keepdims=True))
    ours /= ours.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ours, model.predict_proba(x), atol=1e-4)


def test_balanced_weights_equal_scikit_learns():
    features, targets = clouds(n=200, k=3)
    keep = np.flatnonzero((targets != 2) | (np.arange(200) % 5 == 0))
    features, targets = features[keep], targets[keep]
    problem = Problem.of(targets, n_classes=3, kind="multiclass")
    search = search_penalty(features, problem, folds_of(targets), penalties=(1e-2,), weighted=True)
    weights = (len(targets) / 3 / np.bincount(targets))[targets]
    model, x = scikit(features, targets, 1e-2, np.arange(len(targets)), weights)
    difference = search.head.logits(features) - model.decision_function(x)
    np.testing.assert_allclose(np.ptp(difference, axis=1), 0, atol=1e-3)


def test_imbalance_is_seen_from_a_ratio_of_three():
    for counts, expected in {(30, 10): True, (29, 10): False, (10, 30): True}.items():
        targets = np.repeat([0, 1], counts)
        problem = Problem.of(targets, n_classes=2, kind="multiclass")
        assert problem.is_weighted("auto") is expected
    assert problem.is_weighted("balanced")
    assert not problem.is_weighted("none")


def test_held_out_logits_come_from_models_that_have_not_seen_the_row():
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(60, 40)), np.arange(60) % 2  # nothing to learn
    problem = Problem.of(targets, n_classes=2, kind="multiclass")
    search = search_penalty(features, problem, folds_of(targets), penalties=(1e-6,))
    held_out_accuracy = (search.held_out.argmax(axis=1) == targets).mean()
    training_accuracy = (search.head.logits(features).argmax(axis=1) == targets).mean()
    assert training_accuracy == 1.0
    assert held_out_accuracy < 0.75


def test_a_class_without_images_keeps_its_output():
    features, targets = clouds(k=3)
    problem = Problem.of(targets, n_classes=5, kind="multiclass")
    search = search_penalty(features, problem, folds_of(targets), penalties=PENALTIES)
    logits = search.head.logits(features)
    assert logits.shape == (150, 5)
    assert set(logits.argmax(axis=1)) <= {0, 1, 2}


def test_multilabel_solves_each_label():
    features, targets = clouds(n=200, k=4, noise=0.5)
    table = np.stack([targets % 2, targets // 2], axis=1)
    problem = Problem.of(table, n_classes=2, kind="multilabel")
    search = search_penalty(features, problem, folds_of(targets), penalties=PENALTIES)
    assert ((search.head.logits(features) > 0) == table).mean() > 0.95


@pytest.fixture
def large(monkeypatch):
    """Every problem takes the way of large ones."""
    monkeypatch.setattr(penalty_search, "LARGE_PROBLEM", 1)


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("shape", [(300, 12), (150, 200)])
@pytest.mark.parametrize("weighted", [False, True])
def test_large_problems_have_scikit_learns_optimum(large, k, shape, weighted):
    features, targets = clouds(*shape, k=k)
    features, folds = (5 * features + 30).astype(np.float32), folds_of(targets)
    problem = Problem.of(targets, n_classes=k, kind="multiclass")
    search = search_penalty(features, problem, folds, penalties=PENALTIES, weighted=weighted)
    weights = (len(targets) / k / np.bincount(targets))[targets] if weighted else None
    features = features.astype(np.float64)
    model, x = scikit(features, targets, search.penalty, np.arange(len(targets)), weights)
    ours = softmax(search.head.logits(features.astype(np.float32)), axis=1)
    np.testing.assert_allclose(ours, model.predict_proba(x), atol=2e-4)
    if weighted:
        return  # each fold has its own weights
    train, test = folds[-1]
    model, x = scikit(features, targets, search.penalty, train)
    held_out = softmax(search.held_out[test], axis=1)
    np.testing.assert_allclose(held_out, model.predict_proba(x[test]), atol=2e-3)


def test_large_multilabel_problems_are_one_problem_for_each_label(large):
    features, targets = clouds(n=300, k=4)
    table = np.stack([targets % 2, targets // 2], axis=1)
    problem = Problem.of(table, n_classes=2, kind="multilabel")
    search = search_penalty(features, problem, folds_of(targets), penalties=PENALTIES)
    for column, logits in zip(table.T, search.head.logits(features).T, strict=True):
        model, x = scikit(features, column, search.penalty, np.arange(300))
        np.testing.assert_allclose(expit(logits), model.predict_proba(x)[:, 1], atol=2e-4)


def test_large_problems_choose_the_penalty_of_their_first_fold(large):
    features, targets = clouds(n=600, d=40, k=4, noise=3.0)
    problem, folds = Problem.of(targets, n_classes=4, kind="multiclass"), folds_of(targets)
    search = search_penalty(features, problem, folds)
    train, test = folds[0]
    losses = []
    for penalty in [penalty for penalty, _ in search.candidates]:
        model, x = scikit(features, targets, penalty, train)
        losses.append(log_loss(targets[test], model.predict_proba(x[test])))
    assert [loss for _, loss in search.candidates] == pytest.approx(losses, abs=1e-3)
    assert 3 <= len(losses) < 11


def test_the_fit_on_all_rows_starts_at_the_mean_of_the_folds(large, monkeypatch):
    """It is a long solve: from the first fold alone it needs as many steps as a fold."""
    steps, original = [], penalty_search.solve_path

    def counted(*arguments, **options):
        for solution in original(*arguments, **options):
            steps.append(solution.iterations)
            yield solution

    monkeypatch.setattr(penalty_search, "solve_path", counted)
    features, targets = clouds(n=400, d=100, k=20, noise=3.0)
    problem = Problem.of(targets, n_classes=20, kind="multiclass")
    search_penalty(features, problem, folds_of(targets, 5), penalties=[1e-5])
    _, *others, on_all, _ = steps
    assert on_all < 0.8 * np.mean(others)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_passes_over_the_features_do_not_grow_with_the_classes(monkeypatch, loss):
    """The time was the cube of the classes, because each needed more steps of the solver."""
    passes = {}
    for k in (10, 40, 160):
        calls, original = [], logistic_regression._LOSSES[loss]
        monkeypatch.setitem(
            logistic_regression._LOSSES,
            loss,
            lambda *a, o=original, c=calls: (c.append(1), o(*a))[1],
        )
        features, targets = clouds(n=4 * k, d=60, k=k)
        coordinates = principal_basis(features).apply(features)
        list(solve_path(coordinates, np.eye(k)[targets], PENALTIES, loss=loss))
        passes[k] = len(calls)
        monkeypatch.setitem(logistic_regression._LOSSES, loss, original)
    assert max(passes.values()) < 40 * len(PENALTIES)
    assert passes[160] < 1.3 * passes[10]


@pytest.mark.parametrize("rows", [90, 6000])
def test_large_problems_have_the_same_bits_on_any_number_of_cores(large, monkeypatch, rows):
    features, targets = clouds(n=rows, d=20, k=3)
    problem, heads = Problem.of(targets, n_classes=3, kind="multiclass"), []
    for n_cores in (1, 2, 5):
        monkeypatch.setattr(penalty_search, "cores", lambda n=n_cores: n)
        folds = folds_of(targets)
        heads.append(search_penalty(features, problem, folds, penalties=(1e-2, 1e-3)).head)
    for head in heads[1:]:
        np.testing.assert_array_equal(head.weight, heads[0].weight)


@pytest.mark.parametrize("size", [1e12, 1.0])
@pytest.mark.parametrize("shape", [(150, 12), (150, 200)])
def test_validation_rows_choose_the_penalty_but_are_not_fitted(monkeypatch, size, shape):
    monkeypatch.setattr(penalty_search, "LARGE_PROBLEM", size)
    features, targets = clouds(*shape, k=3)
    folds = folds_of(targets[:100])
    problem = Problem.of(targets, n_classes=3, kind="multiclass")
    alone = search_penalty(
        features[:100],
        Problem.of(targets[:100], n_classes=3, kind="multiclass"),
        folds,
        penalties=(1e-2,),
    )
    both = search_penalty(
        features,
        problem,
        [*folds, (np.arange(100), np.arange(100, 150))],
        penalties=(1e-2,),
        fit_rows=slice(0, 100),
    )
    np.testing.assert_allclose(both.head.weight, alone.head.weight, atol=1e-5)
    np.testing.assert_allclose(both.held_out[:100], alone.held_out, atol=1e-3)
    logits = alone.head.logits(features[100:])
    np.testing.assert_allclose(both.held_out[100:], logits, atol=2e-2)


@pytest.mark.parametrize("size", [1e12, 1.0])
def test_validation_rows_without_signal_make_the_penalty_strong(monkeypatch, size):
    monkeypatch.setattr(penalty_search, "LARGE_PROBLEM", size)
    features, targets = clouds(n=400, k=3, noise=0.5)
    features[100:] = np.random.default_rng(1).normal(size=(300, 12)) * features.std()
    folds = folds_of(targets[:100])
    chosen = []
    for n in (100, 400):
        problem = Problem.of(targets[:n], n_classes=3, kind="multiclass")
        parts = folds if n == 100 else [*folds, (np.arange(100), np.arange(100, 400))]
        search = search_penalty(features[:n], problem, parts, fit_rows=slice(0, 100))
        chosen.append(search.penalty)
    assert chosen[1] > 3 * chosen[0]
