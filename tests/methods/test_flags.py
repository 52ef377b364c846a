"""One definition: every field of every method is one flag, with one help, and arrives."""

import dataclasses

import pytest

from headstart.errors import UnknownNameError, UsageError
from headstart.methods import METHODS
from headstart.methods.flags import PRESET, RENAMED, flags, make_method

FLAGS = {flag.name: flag for flag in flags()}


def leaves(value, above=()):
    """Every field of a method that is no dataclass itself, by path."""
    for field in dataclasses.fields(value):
        inner, path = getattr(value, field.name), (*above, field.name)
        if dataclasses.is_dataclass(inner):
            yield from leaves(inner, path)
        elif path != ("seed",) and field.metadata.get("flag", True):
            yield path, inner


def other(flag, value):
    """Another value than the default, as it is typed and as it should arrive."""
    if flag.choices:
        name = next(choice for choice in flag.choices if choice != value)
        return name, name
    if flag.name == "optimiser":
        return "sgd", "sgd"
    match flag.kind:
        case "switch":
            return (not value), (not value)
        case "integer":
            return str((value or 0) + 2), (value or 0) + 2
        case "numbers":
            return "0.5,0.25", (0.5, 0.25)
        case "number" | "number or text":
            return "0.625", 0.625
    return "head", "head"


CASES = [(name, path) for name, kind in METHODS.items() for path, _ in leaves(kind())]


@pytest.mark.parametrize(
    ("method", "path"), CASES, ids=lambda v: v if isinstance(v, str) else v[-1]
)
def test_every_field_has_a_flag_that_arrives_in_it(method, path):
    plain = dict(leaves(METHODS[method]()))
    flag = FLAGS[RENAMED.get(path, path[-1])]
    assert method in flag.methods
    assert flag.help
    assert flag.help[0] not in " :"
    assert len(flag.help) < 200
    typed, wanted = other(flag, plain[path])
    made = dict(leaves(make_method(method, {flag.name: typed}, seed=4)))
    assert made == {**plain, path: wanted}


def test_no_flag_is_without_a_field():
    names = {RENAMED.get(path, path[-1]) for _, path in CASES}
    assert names | {PRESET} == set(FLAGS)
    assert len(flags()) == len(FLAGS)


def test_nothing_given_is_the_method_as_it_is():
    for name, kind in METHODS.items():
        assert make_method(name, dict.fromkeys(FLAGS), seed=7) == kind(seed=7)


def test_a_preset_is_where_the_other_flags_start():
    found = make_method("scratch", {"augment": "medium", "rotation": "3"}).augmentation
    assert (found.flip, found.rotation, found.brightness) == (True, 3.0, 0.2)
    with pytest.raises(UnknownNameError, match="light"):
        make_method("scratch", {"augment": "ligth"})


def test_learning_rates_may_be_pairs():
    text = "layer3=1e-5, layer4=1e-4"
    assert make_method("finetune", {"learning_rate": text}).learning_rate == text
    assert make_method("finetune", {"learning_rate": "1e-3"}).learning_rate == 1e-3


@pytest.mark.parametrize(
    ("method", "given", "words"),
    [
        ("linear-probe", {"layer_decay": "1"}, "--layer-decay belongs to method finetune, but"),
        ("linear-probe", {"epochs": "1"}, "--epochs belongs to method finetune or scratch, but"),
        ("linear-probe", {"augment": "light"}, "--augment belongs to method finetune or scratch"),
        ("finetune", {"folds": "3"}, "--folds belongs to method linear-probe, but"),
        ("finetune", {"epochs": "many"}, "--epochs must be a whole number, got 'many'"),
        ("finetune", {"mixup": "x"}, "--mixup must be a number, got 'x'"),
        ("linear-probe", {"penalties": "1,x"}, "--penalties must be numbers separated by commas"),
        ("finetune", {"dropout": "2"}, "dropout"),
        ("finetune", {"precision": "fp61"}, "Did you mean 'fp16'"),
    ],
)
def test_invalid_flags_are_refused(method, given, words):
    with pytest.raises(UsageError, match=words):
        make_method(method, given)


def test_an_unknown_method_gets_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'finetune'"):
        make_method("fine-tune", {})


def test_two_fields_of_one_name_are_refused(monkeypatch):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Inner:
        """Inner."""

        epochs: int = 1

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Twice:
        """Twice."""

        epochs: int = 1
        inner: Inner = dataclasses.field(default_factory=Inner)

    Twice.__annotations__["inner"] = Inner
    from headstart.methods.flags import _fields

    with pytest.raises(UsageError, match="epochs"):
        _fields(Twice)
