"""A network of the user's own as backbone: its specification, its checks and its code.

Its stages are found in tracing.py. Its code is never saved: a model on such a network is loaded
with the code that builds it.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from headstart.backbones.freezing import fingerprint, freeze
from headstart.backbones.spec import IMAGENET, BackboneSpec
from headstart.backbones.stages import StagePlan, belongs_to
from headstart.backbones.tracing import (
    WHOLE,
    agrees_with,
    find_ends,
    overlaps,
    plan_module,
    read_ends,
    sample_images,
    select_maps,
)
from headstart.data.transforms.preprocess import Preprocess
from headstart.errors import UnknownNameError, UsageError

__all__ = [
    "bind",
    "build_network",
    "describe_module",
    "randomise",
]

DEFAULTS: Mapping[str, Any] = {
    "size": 224,
    "crop": 0.875,
    "mean": IMAGENET[0],
    "std": IMAGENET[1],
    "interpolation": "bilinear",
}
"""Preprocessing of images if it is not given: that of most networks trained on ImageNet."""


def describe_module(
    module: object,
    *,
    stages: Sequence[str] | Mapping[str, str] | None = None,
    preprocess: Preprocess | Mapping[str, Any] | None = None,
) -> tuple[BackboneSpec, dict[str, Tensor], dict[str, str]]:
    """Describe a network of the user's own.

    Parameters
    ----------
    module : torch.nn.Module
        It is copied, so later changes to it do not matter.
    stages : sequence of str, or mapping of str to str, optional
        Paths of the submodules that end the stages, in execution order, or names with these
        paths. What comes after the last one, such as a classifier, is removed. By default the
        stages are found by the sizes of the maps.
    preprocess : Preprocess or mapping, optional
        Some of ``size``, ``crop`` (share of the resized image), ``mean``, ``std`` and
        ``interpolation``.

    Returns
    -------
    BackboneSpec, dict of str to tensor, dict of str to str
        Specification, values and origin of the weights.

    Raises
    ------
    UnknownNameError
        If a stage or a key of ``preprocess`` does not exist.
    UsageError
        If it is no network that gives maps, or its values cannot be used.
    """
    network = _copy(_require_module(module))
    expects, assumed = _read_preprocess(preprocess)
    maps = _forward(network, expects)
    ends = read_ends(network, stages) if stages else find_ends(network, expects, maps)
    if not stages and not agrees_with(network, plan_module(network, ends), expects, maps):
        ends = {WHOLE: ""}
    structure = f"{type(network).__name__}-{_hash(repr(network))[:12]}"
    spec = BackboneSpec(
        name=f"module/{structure}",
        source="module",
        architecture=f"module/{structure}",
        preprocess=expects,
        sha256=_hash(*_codes(network)),
        model_options=tuple(ends.items()),
        build=lambda: copy.deepcopy(network),
    )
    pruned, _ = build_network(spec)
    state = {name: tensor.detach().clone() for name, tensor in pruned.state_dict().items()}
    _require_values(state)
    weights = fingerprint(state)
    origin = {
        "sha256": weights,
        "from": "module",
        "file": f"{type(network).__module__}.{type(network).__qualname__}",
        "assumed": assumed,
    }
    return replace(spec, name=f"{spec.name[:-4]}{weights[:4]}"), state, origin


def bind(spec: BackboneSpec, module: object) -> BackboneSpec:
    """Give the specification in a model file the code that builds its network.

    Parameters
    ----------
    spec : BackboneSpec
        Of a model that was trained on a network of the user's own.
    module : torch.nn.Module, or callable without arguments
        The network, or a function or class that builds it. Its values do not matter.

    Raises
    ------
    UsageError
        If it is not the network that the model was trained with.
    """
    is_builder = callable(module) and not isinstance(module, nn.Module)
    network = _copy(_require_module(module() if is_builder else module))  # type: ignore[operator]
    structure = f"module/{type(network).__name__}-{_hash(repr(network))[:12]}"
    if structure != spec.architecture:
        raise UsageError(
            f"The model was trained on {spec.architecture}, but `module` is {structure}: it has "
            "another name, other layers or other settings of its layers. Pass the code that built "
            "the network of the training."
        )
    code = _hash(*_codes(network))
    return replace(spec, build=lambda: copy.deepcopy(network), sha256=code)


def build_network(spec: BackboneSpec) -> tuple[nn.Module, StagePlan]:
    """Build the network of a specification without the parts after its last stage.

    Raises
    ------
    UsageError
        If the specification has no code that builds it.
    """
    if spec.build is None:
        raise UsageError(
            f"{spec.name} is a network of your own, whose code is not in the model folder. Pass "
            "it: headstart.load(folder, module=build), where `build` makes the plain network."
        )
    network = spec.build()
    plan = plan_module(network, {name: str(path) for name, path in spec.model_options})
    used = [path for stage in plan.stages for path in stage.paths]
    for path, child in list(network.named_modules()):
        if path and any(child.state_dict()) and not any(overlaps(path, part) for part in used):
            owner, _, name = path.rpartition(".")
            with suppress(AttributeError):  # inside a part that was removed already
                setattr(network.get_submodule(owner), name, nn.Identity())
    for name in list(network.state_dict()):
        if not belongs_to(name, used):
            owner, _, tensor = name.rpartition(".")
            setattr(network.get_submodule(owner), tensor, None)
    return network, plan


def randomise(network: nn.Module) -> None:
    """Give a network random weights, by the ``reset_parameters`` of its layers, in place.

    Raises
    ------
    UsageError
        If a parameter belongs to a layer without it.
    """
    covered: set[str] = set()
    for path, layer in network.named_modules():
        reset = getattr(layer, "reset_parameters", None)
        if callable(reset):
            reset()
            covered |= {f"{path}.{name}".lstrip(".") for name, _ in layer.named_parameters()}
    missing = [name for name, _ in network.named_parameters() if name not in covered]
    if missing:
        raise UsageError(
            f"{type(network).__name__} cannot get random weights: the layer of {missing[0]!r} has "
            "no method `reset_parameters`. Add it to that layer, or do not use --method scratch."
        )


# ---------------------------------------------------------------------------------- checks


def _require_module(module: object) -> nn.Module:
    if not isinstance(module, nn.Module):
        is_class = isinstance(module, type) and issubclass(module, nn.Module)
        got = f"the class {module.__name__}" if is_class else f"{module!r:.80}"  # type: ignore[attr-defined]
        call = f"{module.__name__}()" if is_class else "an object such as MyNetwork()"  # type: ignore[attr-defined]
        raise UsageError(f"A backbone must be an nn.Module, got {got}. Pass {call}.")
    name = type(module).__name__
    parameters = dict(module.named_parameters(remove_duplicate=False))
    if not parameters:
        raise UsageError(
            f"{name} has 0 parameters, so nothing can be transferred. Pass a trained network."
        )
    for path, parameter in parameters.items():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise UsageError(
                f"Parameter {path!r} of {name} has no values yet. Run the network once on a batch "
                "of images first."
            )
    if len(parameters) != len(list(module.parameters())):
        raise UsageError(
            f"{name} uses one parameter under {len(parameters)} names for "
            f"{len(list(module.parameters()))} tensors. Give each layer parameters of its own."
        )
    return module


def _copy(module: nn.Module) -> nn.Module:
    """Copy a network to the CPU, in float32 and inference mode, without gradients."""
    try:
        return freeze(copy.deepcopy(module).cpu().float())
    except Exception as error:  # user's code: any exception is possible
        raise UsageError(
            f"{type(module).__name__} cannot be copied ({type(error).__name__}: {error}). Remove "
            "the tensors that it keeps outside of its parameters and buffers."
        ) from error


def _require_values(state: Mapping[str, Tensor]) -> None:
    for name, tensor in state.items():
        if tensor.dtype not in {torch.float32, torch.int64}:
            raise UsageError(
                f"Tensor {name!r} has the type {tensor.dtype}, which a model file cannot hold. "
                "Convert it to float32 or int64, or register it with persistent=False."
            )
        if not torch.isfinite(tensor).all():
            raise UsageError(
                f"Tensor {name!r} holds NaN or infinity. Pass a network whose training did not "
                "diverge."
            )


def _forward(network: nn.Module, expects: Preprocess) -> Tensor:
    """Run the network on two images; its output must be finite numbers."""
    name = type(network).__name__
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = select_maps(network(sample_images(expects)))
    except Exception as error:  # user's code: any exception is possible
        raise UsageError(
            f"The forward pass of {name} failed on images of shape (2, 3, {expects.shape[0]}, "
            f"{expects.shape[1]}): {type(error).__name__}: {str(error)[:200]}. Pass a network for "
            "RGB images, and preprocess={'size': ...} if it needs another size."
        ) from error
    if not isinstance(output, Tensor):
        raise UsageError(
            f"The forward pass of {name} returns a {type(output).__name__}. Make it return a "
            "tensor of maps (n, channels, h, w), or an object with `last_hidden_state` or "
            "`feature_maps`."
        )
    return output


# ------------------------------------------------------------------------------ preprocessing


def _read_preprocess(values: Preprocess | Mapping[str, Any] | None) -> tuple[Preprocess, str]:
    """Return the preprocessing, and in words what was assumed because it was not given."""
    if isinstance(values, Preprocess):
        return values, ""
    if not isinstance(values or {}, Mapping):
        raise UsageError(
            f"`preprocess` must be a dict, got {values!r}. Pass preprocess={{'size': 224}}."
        )
    given: Mapping[str, Any] = values or {}
    for key in given:
        if key not in DEFAULTS:
            raise UnknownNameError("preprocess", str(key), DEFAULTS)
    settings = {**DEFAULTS, **given}
    size, share = settings["size"], settings["crop"]
    if type(size) is not int or size < 1:
        raise UsageError(f"`size` must be pixels above 0, got {size!r}. Pass {{'size': 224}}.")
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise UsageError(
            f"`crop` must be a share from 0 to 1 of the resized image, got {share!r}. Pass "
            "{'crop': 0.875}, or 1 for the whole image."
        )
    expects = Preprocess(
        resize=round(size / share),
        crop=size,
        interpolation=settings["interpolation"],
        mean=_three_numbers("mean", settings["mean"]),
        std=_three_numbers("std", settings["std"]),
    )
    assumed = [f"{key} {_plain(DEFAULTS[key])}" for key in DEFAULTS if key not in given]
    return expects, ", ".join(assumed)


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _three_numbers(name: str, value: Any) -> tuple[float, float, float]:
    numbers = [value] * 3 if isinstance(value, Real) else value
    try:
        first, second, third = (float(number) for number in numbers)
    except (TypeError, ValueError):
        raise UsageError(
            f"`{name}` must be one or three numbers, got {value!r}. Pass {{'{name}': 0.5}}."
        ) from None
    return first, second, third


def _codes(network: nn.Module) -> Iterator[str]:
    """Source of every class of the network that is not torch's own, for the cache keys."""
    kinds = {type(layer) for layer in network.modules()}
    for kind in sorted(kinds, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}"):
        if not kind.__module__.startswith("torch."):
            yield _code_of(kind)


def _code_of(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # typed into a shell: take the compiled code
        methods = [value for value in vars(kind).values() if inspect.isfunction(value)]
        codes = [(m.__code__.co_code.hex(), repr(m.__code__.co_names)) for m in methods]
        return f"{kind.__qualname__} {sorted(codes)}"


def _hash(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
