"""Read a file of weights: plain tensors by name, never code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from headstart.backbones.spec import BackboneSpec, WeightsFile
from headstart.errors import WeightsMismatchError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["read_state"]

LITE0_STAGES = (0, 1, 3, 5, 8, 11, 15)
"""Number of the first block of each stage."""
LITE0_FIRST = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
LITE0_OTHERS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def read_state(file: WeightsFile, spec: BackboneSpec) -> dict[str, Tensor]:
    """Read tensors by the names that the library of the architecture gives them.

    Parameters
    ----------
    file : WeightsFile
        ``.safetensors``, or what ``torch.save`` wrote; code in the file is never run.
    spec : BackboneSpec

    Returns
    -------
    dict of str to tensor
        Floating-point tensors in float32.

    Raises
    ------
    WeightsMismatchError
        If the file is damaged, or holds anything but tensors by name.
    """
    import torch

    loaded = _load_safetensors(file) if _is_safetensors(file) else _load_torch(file)
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    others = [str(k) for k, v in loaded.items() if not isinstance(v, torch.Tensor)]
    if others or not loaded:
        raise WeightsMismatchError(
            f"Expected {file.path} to hold tensors by name, got "
            f"{', '.join(others[:5]) or 'nothing'}; do save model.state_dict() alone."
        )
    state = {str(key).removeprefix("module."): value for key, value in loaded.items()}
    if spec.source == "embedded":
        state = {_timm_name(key): value for key, value in state.items()}
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def _is_safetensors(file: WeightsFile) -> bool:
    return file.path.suffix == ".safetensors"


def _load_safetensors(file: WeightsFile) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file.path)
    except SafetensorError as error:
        raise _damaged(file, error) from error


def _load_torch(file: WeightsFile) -> Mapping[str, Any]:
    import torch

    try:
        loaded = torch.load(file.path, map_location="cpu", weights_only=True)
    # A damaged or hostile file can fail in any way that the unpickler has.
    except Exception as error:
        raise _damaged(file, error) from error
    if not isinstance(loaded, Mapping):
        raise WeightsMismatchError(
            f"Expected {file.path} to hold tensors by name, got a {type(loaded).__name__}; "
            "do save model.state_dict() and not the model."
        )
    return loaded


def _damaged(file: WeightsFile, error: Exception) -> WeightsMismatchError:
    first = str(error).strip().partition("\n")[0]
    return WeightsMismatchError(
        f"Expected {file.path} to be a file of plain tensors, got one that cannot be read as "
        f"such ({first}); do save model.state_dict() as .safetensors. Files that run code when "
        "they are read are refused."
    )


def _timm_name(key: str) -> str:
    """Rename a tensor of the embedded file to what timm's tf_efficientnet_lite0 calls it."""
    first, _, rest = key.partition(".")
    if first != "_blocks":
        outer = {
            "_conv_stem": "conv_stem",
            "_bn0": "bn1",
            "_conv_head": "conv_head",
            "_bn1": "bn2",
            "_fc": "classifier",
        }
        return f"{outer[first]}.{rest}"
    number, layer, tensor = rest.split(".")
    stage = max(i for i, begin in enumerate(LITE0_STAGES) if begin <= int(number))
    inner = LITE0_FIRST if int(number) == 0 else LITE0_OTHERS
    return f"blocks.{stage}.{int(number) - LITE0_STAGES[stage]}.{inner[layer]}.{tensor}"
