"""Stages of a network of the user's own, from a trace of its forward pass.

The forward pass is traced with ``torch.fx`` and divided at the points where a single tensor is
passed on, so the stages run one after the other are the network's own forward pass, including what
happens between its submodules. A network that cannot be traced has one stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from headstart.backbones.stages import StageModules, StagePlan, spatial_mean
from headstart.data.transforms.preprocess import Preprocess
from headstart.errors import UnknownNameError, UsageError

__all__ = [
    "WHOLE",
    "agrees_with",
    "find_ends",
    "overlaps",
    "plan_module",
    "read_ends",
    "sample_images",
    "select_maps",
]

WHOLE = "trunk"
"""Name of the only stage of a network that cannot be divided."""
FEW_STAGES = 3
"""With fewer stages than this, the largest child is opened to find more."""
MAX_OPENED = 6
"""Most children that are opened, one inside the other."""
ELEMENTWISE = frozenset(
    [
        "relu",
        "relu_",
        "relu6",
        "gelu",
        "silu",
        "leaky_relu",
        "elu",
        "hardswish",
        "mish",
        "tanh",
        "sigmoid",
    ]
)
"""Functions after a submodule that belong to its stage, because they keep the shape."""
UNTRACEABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
    fx.proxy.TraceError,
)
"""Exceptions of the user's code when it runs on symbols instead of tensors."""
OUTPUT_NAMES = ("last_hidden_state", "feature_maps", "out")
"""Attributes and keys of a network's output that hold its maps."""


def sample_images(expects: Preprocess) -> Tensor:
    """Return two random images (2, 3, H, W), always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, *expects.shape, generator=generator)


def select_maps(output: Any) -> Any:
    """Select the maps in a network's output: the last ones of several."""
    if isinstance(output, Tensor | fx.Proxy):
        return output
    for name in OUTPUT_NAMES:
        is_key = isinstance(output, Mapping) and name in output
        value = output[name] if is_key else getattr(output, name, None)
        if value is not None:
            return select_maps(value)
    if isinstance(output, Mapping) and output:
        return select_maps(list(output.values())[-1])
    if isinstance(output, tuple | list) and output:
        return select_maps(output[-1])
    return output


@dataclass(frozen=True, eq=False)
class _Trace:
    """Traced forward pass.

    Parameters
    ----------
    graph : fx.Graph
        Kept so that its nodes stay valid.
    nodes : list of fx.Node
        In execution order; the first is the input.
    """

    graph: fx.Graph
    nodes: list[fx.Node]

    def child(self, node: fx.Node) -> str | None:
        """Path of the submodule that a node calls."""
        if node.op != "call_module":
            return None
        return str(node.target).removeprefix("network").removeprefix(".")

    def tensors(self, node: fx.Node) -> str | None:
        """Path of the submodule or tensor whose values a node uses."""
        if node.op == "get_attr":
            return str(node.target).removeprefix("network.")
        return self.child(node)

    def can_end_at(self, index: int) -> bool:
        """Whether only the value of this node is used after it, and no submodule on both sides."""
        position = {node: i for i, node in enumerate(self.nodes)}
        after = self.nodes[index + 1 :]
        used = {other for node in after for other in node.all_input_nodes if other.op != "get_attr"}
        owners = {self.tensors(node) for node in self.nodes[: index + 1]} - {None}
        is_shared = any(self.tensors(node) in owners for node in after)
        return all(position[node] >= index for node in used) and not is_shared

    def end_of(self, path: str) -> int | None:
        """Index of the last node of a submodule, with the functions that keep its shape."""
        if not path:
            return len(self.nodes) - 1
        inside = [
            index
            for index, node in enumerate(self.nodes)
            if (child := self.child(node)) is not None and overlaps(child, path)
        ]
        if not inside:
            return None
        index = inside[-1]
        while index + 1 < len(self.nodes) and _is_elementwise(self.nodes[index + 1]):
            index += 1
        return index


class _Maps(nn.Module):
    """Select the maps of a network's output."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        return select_maps(self.network(x))


class _Tracer(fx.Tracer):
    """Trace into the opened submodules only; every other one is a single step."""

    def __init__(self, opened: set[str]) -> None:
        super().__init__()
        self.opened = opened

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.opened


def _trace(network: nn.Module, opened: set[str]) -> _Trace | None:
    """Trace a forward pass; None if its code depends on the values of tensors."""
    paths = {"network", *(f"network.{path}" for path in opened if path)}
    try:
        graph = _Tracer(paths).trace(_Maps(network))
    except UNTRACEABLE:
        return None
    *nodes, output = graph.nodes
    result = output.args[0]
    if not nodes or not isinstance(result, fx.Node):
        return None
    return _Trace(graph, nodes[: nodes.index(result) + 1])


def plan_module(network: nn.Module, ends: Mapping[str, str]) -> StagePlan:
    """Divide a network into stages.

    Parameters
    ----------
    network : torch.nn.Module
    ends : mapping of str to str
        Names of the stages in execution order, with the path of the submodule that ends each; an
        empty path is the end of the network.

    Raises
    ------
    UsageError
        If the network cannot be divided there.
    """
    if list(ends.values()) == [""]:
        [name] = ends
        owns = tuple(network.state_dict())
        stage = StageModules(name=name, steps=(_run_whole,), owns=owns)
        return StagePlan(stages=(stage,), pool=_pool, heads=())
    trace = _trace(network, _ancestors(ends.values()))
    if trace is None:
        raise UsageError(
            f"The forward pass of {type(network).__name__} cannot be divided into {', '.join(ends)}"
            ": its code depends on the values of tensors. Leave out `stages`, for one stage."
        )
    indices = [_require_end(trace, path, network) for path in ends.values()]
    if any(later <= earlier for earlier, later in pairwise(indices)):
        raise UsageError(
            f"The stages {', '.join(ends)} are not in the order of the forward pass. Write the "
            "first one first."
        )
    stages = [
        _stage_of_nodes(trace, name, start, end)
        for name, (start, end) in zip(ends, pairwise([0, *indices]), strict=True)
    ]
    return StagePlan(stages=tuple(stages), pool=_pool, heads=())


def _require_end(trace: _Trace, path: str, network: nn.Module) -> int:
    index = trace.end_of(path)
    if index is None:
        children = [name for name, _ in network.named_modules() if name]
        if path not in children:
            raise UnknownNameError("stage", path, children)
        raise UsageError(
            f"Stage {path!r} is not called by the forward pass of {type(network).__name__}. Name "
            "a submodule that it calls."
        )
    if not trace.can_end_at(index):
        raise UsageError(
            f"A stage cannot end at {path!r}: the forward pass uses other tensors after it, such "
            "as those of a skip connection. Name a submodule whose output is passed on alone."
        )
    return index


def _stage_of_nodes(trace: _Trace, name: str, start: int, end: int) -> StageModules:
    """Make a stage of the nodes after ``start``, up to ``end``."""
    nodes = trace.nodes[start + 1 : end + 1]
    source, last = trace.nodes[start], trace.nodes[end]
    constants = [n for n in trace.nodes if n.op == "get_attr"]
    used = {other for node in nodes for other in node.all_input_nodes}
    constants = [node for node in constants if node in used or node in nodes]
    owns = [path for node in (*constants, *nodes) if (path := trace.tensors(node)) is not None]
    steps = [node for node in nodes if node.op != "get_attr"]

    def run(trunk: nn.Module, x: Tensor) -> Tensor:
        values: dict[fx.Node, Any] = {source: x}
        for node in constants:
            values[node] = _attribute(trunk, str(node.target).removeprefix("network."))
        for node in steps:
            args = fx.map_arg(node.args, values.__getitem__)
            kwargs = fx.map_arg(node.kwargs, values.__getitem__)
            if node.op == "call_module":
                values[node] = trunk.get_submodule(trace.child(node) or "")(*args, **kwargs)
            elif node.op == "call_method":
                values[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            else:
                values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return values[last]  # type: ignore[no-any-return]

    return StageModules(name=name, steps=(run,), owns=tuple(dict.fromkeys(owns)))


def _attribute(trunk: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(trunk.get_submodule(owner), name)


def _run_whole(trunk: nn.Module, x: Tensor) -> Tensor:
    return select_maps(trunk(x))  # type: ignore[no-any-return]


def _pool(trunk: nn.Module, x: Tensor) -> Tensor:
    return spatial_mean(x)


def read_ends(network: nn.Module, stages: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Read the user's stages, as names with the paths of the submodules that end them.

    Raises
    ------
    UnknownNameError
        If there is no such submodule.
    UsageError
        If it is no list of different submodules.
    """
    pairs = stages.items() if isinstance(stages, Mapping) else [(path, path) for path in stages]
    ends = {str(name): str(path) for name, path in pairs} if not isinstance(stages, str) else {}
    if not ends or len(ends) != len(stages):
        raise UsageError(
            f"`stages` must be a list of different submodules, got {stages!r}. Pass a list such as "
            f"{[name for name, _ in network.named_children()][:3]}."
        )
    children = [name for name, _ in network.named_modules() if name]
    for path in ends.values():
        if path not in children:
            raise UnknownNameError("stage", path, children)
    return ends


def find_ends(network: nn.Module, expects: Preprocess, maps: Tensor) -> dict[str, str]:
    """Find stages: the submodules after which the size of the maps changes.

    Raises
    ------
    UsageError
        If the output of the network is no maps.
    """
    if maps.ndim != 4:
        children = [name for name, c in network.named_children() if any(c.state_dict())]
        raise UsageError(
            f"The output of {type(network).__name__} has the shape {tuple(maps.shape)}, but a "
            "backbone gives maps (n, channels, h, w). Name the submodules before the classifier, "
            f"as in stages={children[:-1][-4:]}."
        )
    best: dict[str, str] = {WHOLE: ""}
    opened: set[str] = set()
    for _ in range(MAX_OPENED):
        trace = _trace(network, opened)
        if trace is None:
            break
        ends = _ends_by_size(network, trace, expects)
        best = ends if len(ends) > len(best) else best
        largest = _largest_child(network, trace)
        if len(best) >= FEW_STAGES or largest is None:
            break
        opened.add(largest)
    return best


def _ends_by_size(network: nn.Module, trace: _Trace, expects: Preprocess) -> dict[str, str]:
    """End a stage after the last submodule at each size of the maps."""
    heights = _heights(network, trace, expects)
    ends: dict[str, str] = {}
    pending: list[str] = []  # submodules after the last end
    children = _children(trace)
    possible = [path for path in children if _can_end(trace, path, heights)]
    for path in children:
        pending.append(path)
        following = possible[possible.index(path) + 1 :] if path in possible else []
        if path not in possible or (
            following and _height(trace, following[0], heights) == (_height(trace, path, heights))
        ):
            continue
        largest = max(pending, key=lambda child: _n_values(network, child))
        if _n_values(network, largest):
            ends[largest] = path
            pending = []
    if ends:
        ends[list(ends)[-1]] = ""  # the last stage also runs what follows
    return ends


def _can_end(trace: _Trace, path: str, heights: Mapping[int, int]) -> bool:
    index = trace.end_of(path)
    return index is not None and index in heights and trace.can_end_at(index)


def _height(trace: _Trace, path: str, heights: Mapping[int, int]) -> int:
    return heights[trace.end_of(path) or 0]


class _Recorder(fx.Interpreter):
    """Run a traced network and record the height of the maps after each node."""

    def __init__(self, network: nn.Module, trace: _Trace) -> None:
        super().__init__(_Maps(network), graph=trace.graph)
        self.heights: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.ndim == 4:
            self.heights[n] = value.shape[2]
        return value


def _heights(network: nn.Module, trace: _Trace, expects: Preprocess) -> dict[int, int]:
    """Height of the maps after each node, by its index."""
    recorder = _Recorder(network, trace)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        recorder.run(sample_images(expects))
    return {i: recorder.heights[n] for i, n in enumerate(trace.nodes) if n in recorder.heights}


def _children(trace: _Trace) -> list[str]:
    return list(dict.fromkeys(p for node in trace.nodes if (p := trace.child(node)) is not None))


def _largest_child(network: nn.Module, trace: _Trace) -> str | None:
    """Path of the submodule with the most parameters that has submodules of its own."""
    inner = [p for p in _children(trace) if any(True for _ in network.get_submodule(p).children())]
    return max(inner, key=lambda path: _n_values(network, path), default=None)


def _n_values(network: nn.Module, path: str) -> int:
    return sum(parameter.numel() for parameter in network.get_submodule(path).parameters())


def agrees_with(network: nn.Module, plan: StagePlan, expects: Preprocess, maps: Tensor) -> bool:
    """Whether the stages, one after the other, give the output of the network.

    Parameters
    ----------
    network : torch.nn.Module
    plan : StagePlan
    expects : Preprocess
    maps : tensor
        Output of the network for ``sample_images``.
    """
    x = sample_images(expects)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for stage in plan.stages:
            for step in stage.steps:
                x = step(network, x)  # type: ignore[operator]
    return x.shape == maps.shape and torch.allclose(x, maps, rtol=1e-4, atol=1e-5)


def _ancestors(paths: Iterable[str]) -> set[str]:
    """Paths of the submodules that contain one of these."""
    parts = (path.split(".") for path in paths)
    return {".".join(names[:depth]) for names in parts for depth in range(1, len(names))}


def _is_elementwise(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op in {"call_function", "call_method"} and name in ELEMENTWISE


def overlaps(path: str, other: str) -> bool:
    """Whether one path is, or lies inside, the other."""
    return path == other or path.startswith(f"{other}.") or other.startswith(f"{path}.")
