"""Move scales of a layer's inputs into the preceding module, without changing the answers.

A linear layer that reads ``x`` gives the same for ``x / t`` if its columns are multiplied by ``t``.
The division is written into the gain of a norm, or the rows of a linear layer, before it. Each
candidate module is tested: its tensors are changed, and the output of the smallest module that
holds it and the layer, a block mostly, must not change on the inputs that it has in the model.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from sonde.compress._blocks import placed_call
from sonde.compress._layers import Weighted
from sonde.core.inputs import Inputs, Model
from sonde.tap import calls_of
from sonde.tap.hand.recording import Forward, intercepted
from sonde.tap.hooks.holding import in_eval
from sonde.tap.hooks.session import Session
from sonde.tap.rows.padding import right_padded
from sonde.weights._kinds import in_and_out, is_linear, kind_of
from sonde.weights.live import with_tensors

MOST_TRIED, TRIED = 3, 4
"""Modules before a layer that are tried, and examples that they are tried on."""
SAME = 1e-4
"""Largest change of an answer, in parts of the largest answer, that is rounding."""


@dataclass(frozen=True, eq=False)
class ScaleGroup:
    """Layers that read one tensor, and the module whose output can be divided by the scales.

    Parameters
    ----------
    layers : tuple of Weighted
    source : str
        Name of the module.
    heads : tuple of int
        Groups of heads, heads of a group and width of a head, if heads share values; else
        ``(1, 1, width)``.
    """

    layers: tuple[Weighted, ...]
    source: str
    heads: tuple[int, int, int]

    def shared(self, scale: Float[Tensor, "in"]) -> Float[Tensor, "in"]:
        """Return scales where heads that share values get the largest of their scales."""
        parts = scale.reshape(self.heads)
        return parts.amax(1, keepdim=True).expand(self.heads).reshape(-1)

    def of_source(self, scale: Float[Tensor, "in"]) -> Float[Tensor, "out"]:
        """Return the divisor of each output of the preceding module."""
        return scale.reshape(self.heads)[:, 0].reshape(-1)


def scale_groups(model: Model, layers: Sequence[Weighted], inputs: Inputs) -> list[ScaleGroup]:
    """Return the groups of linear layers whose input can be divided, in the order of their calls.

    Parameters
    ----------
    model : Model
    layers : sequence of Weighted
    inputs : Inputs
        The first examples are tried.
    """
    module = model.module
    batch = right_padded(next(iter(inputs.batches(0, min(TRIED, len(inputs))))))
    args, kwargs = placed_call(model, batch)
    names = {part: name for name, part in module.named_modules() if _width(part)}
    chosen: dict[nn.Module, Weighted] = {one.module: one for one in layers if one.is_linear}
    calls = [(part, id(x)) for part, x in calls_of(module, list(names), args, kwargs)]
    counts = {part: sum(p is part for p, _ in calls) for part, _ in calls}
    candidates: list[list[ScaleGroup]] = []
    for i, (first, key) in enumerate(calls):
        if first not in chosen or key in {k for _, k in calls[:i]}:
            continue
        readers = [part for part, k in calls if k == key]
        if any(part not in chosen or counts[part] > 1 for part in readers):
            continue
        layers_read = tuple(chosen[p] for p in readers)
        before = [(p, _fits(model, p, first)) for p, _ in reversed(calls[:i]) if counts[p] == 1]
        fitting = [(p, heads) for p, heads in before if heads is not None][:MOST_TRIED]
        candidates.append([ScaleGroup(layers_read, names[p], heads) for p, heads in fitting])
    holders = _holders(module, [group for several in candidates for group in several])
    seen = _recorded(module, holders, args, kwargs)
    groups: list[ScaleGroup] = []
    for several in candidates:
        same = (group for group in several if _is_same(group, _holder_of(group, seen)))
        groups += [group for group in [next(same, None)] if group is not None]
    return groups


def scaled_tensors(
    module: nn.Module, scales: Sequence[tuple[ScaleGroup, Float[Tensor, "_in"]]]
) -> dict[str, Float[Tensor, "..."]]:
    """Return every tensor that the scales change, in float64."""
    scaled: dict[str, Tensor] = {}

    def now(name: str) -> Tensor:
        return scaled.get(name, module.get_parameter(name).detach().double())

    for group, scale in scales:
        for layer in group.layers:
            wide = scale.to(now(layer.weight))
            scaled[layer.weight] = now(layer.weight) * (wide[:, None] if layer.turned else wide)
        source: Any = module.get_submodule(group.source)
        parts, turned = group.of_source(scale), kind_of(source) == "transposed"
        for leaf in ("weight", "bias"):
            if source._parameters.get(leaf) is not None:
                x = now(f"{group.source}.{leaf}")
                axes = (-1,) if turned else (-1, *[1] * (x.ndim - 1))
                scaled[f"{group.source}.{leaf}"] = x / parts.to(x).reshape(axes)
    return scaled


@dataclass(frozen=True, eq=False)
class _Seen:
    """A module, its name, and its call in the model."""

    name: str
    module: nn.Module
    args: Any
    kwargs: Any
    output: list[Tensor]


def _names_above(name: str) -> list[str]:
    """Return the names of the modules that hold a module, the nearest first, "" last."""
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)] + [""]


def _above(group: ScaleGroup) -> list[str]:
    """Return the names of the modules that hold all layers of a group and its source."""
    common = _names_above(group.source)
    for layer in group.layers:
        common = [name for name in common if name in _names_above(layer.name)]
    return common


def _holders(module: nn.Module, groups: Sequence[ScaleGroup]) -> dict[str, nn.Module]:
    """Return every module that holds a group, by name; parameters are used in no other module."""
    places = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
    names = {name: None for group in groups for name in _above(group)}
    holders = {name: module.get_submodule(name) for name in names}
    own = {n: all(places[id(p)] == 1 for p in part.parameters()) for n, part in holders.items()}
    return {name: part for name, part in holders.items() if own[name] or not name}


def _holder_of(group: ScaleGroup, seen: Mapping[str, _Seen]) -> _Seen:
    return seen[next(name for name in _above(group) if name in seen)]


@torch.no_grad()
def _recorded(
    module: nn.Module, holders: Mapping[str, nn.Module], args: Any, kwargs: dict[str, Any]
) -> dict[str, _Seen]:
    """Return the call of each module that runs once, in one forward pass of the model."""
    calls: dict[nn.Module, list[_Seen]] = {part: [] for part in holders.values()}
    names = {part: name for name, part in holders.items()}

    def around(part: nn.Module, forward: Forward, args: Any, kwargs: dict[str, Any]) -> Any:
        given = tree_map(_copy, args), tree_map(_copy, kwargs)  # a block may write into them
        output = forward(*args, **kwargs)
        calls[part].append(_Seen(names[part], part, given[0], given[1], _tensors(output)))
        return output

    parts = [part for name, part in holders.items() if name]
    with Session(module), intercepted(parts, around):
        module(*args, **kwargs)
    once = {names[part]: several[0] for part, several in calls.items() if len(several) == 1}
    whole = _Seen("", module, args, kwargs, [answers_of(module, args, kwargs)])
    return {**once, "": whole}


def _copy(x: Any) -> Any:
    return x.detach().clone() if isinstance(x, Tensor) else x


def _tensors(output: Any) -> list[Tensor]:
    leaves = [x for x in tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point()]
    return [x.detach().to(torch.float64, copy=True) for x in leaves]


@torch.no_grad()
def _is_same(group: ScaleGroup, seen: _Seen) -> bool:
    """Return whether scales that are drawn change no output of a module."""
    draw = torch.Generator().manual_seed(0)
    width = in_and_out(group.layers[0].module)[0]
    scale = group.shared(torch.rand(width, generator=draw, dtype=torch.float64) * 1.5 + 0.5)
    start = len(seen.name) + 1 if seen.name else 0
    inside = ScaleGroup(
        tuple(replace(one, name=one.name[start:]) for one in group.layers),
        group.source[start:],
        group.heads,
    )
    new = scaled_tensors(seen.module, [(inside, scale)])
    named = dict(seen.module.named_parameters())
    other = with_tensors(seen.module, {name: x.to(named[name]) for name, x in new.items()})
    if not seen.name:
        output = [answers_of(other, seen.args, seen.kwargs)]
    else:
        args, kwargs = tree_map(_copy, (seen.args, seen.kwargs))
        with torch.random.fork_rng(devices=[]), in_eval(other):
            output = _tensors(other(*args, **kwargs))
    coarse = max(SAME, 8 * torch.finfo(next(seen.module.parameters()).dtype).eps)
    return len(output) == len(seen.output) and all(
        bool((x - y).abs().max() <= coarse * y.abs().max())
        for x, y in zip(output, seen.output, strict=True)
    )


@torch.no_grad()
def answers_of(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> Tensor:
    """Return a model's answers in eval mode and float64, and restore modes and random state."""
    with torch.random.fork_rng(devices=[]), in_eval(module):
        output = module(*args, **kwargs)
    output = getattr(output, "logits", output)
    output = getattr(output, "last_hidden_state", output)
    return (output[0] if isinstance(output, tuple) else output).double()


def _width(part: nn.Module) -> int:
    """Return the number of output features of a linear layer or a norm, 0 for other modules."""
    if is_linear(part):
        return in_and_out(part)[1]
    weight = part._parameters.get("weight")
    is_norm = weight is not None and weight.ndim == 1
    return len(weight) if weight is not None and is_norm else 0


def _fits(model: Model, source: nn.Module, reader: Any) -> tuple[int, int, int] | None:
    """Return how a module's outputs map to a layer's inputs, or None if they do not."""
    width, wanted = _width(source), in_and_out(reader)[0]
    if width == wanted:
        return 1, 1, width
    n_heads = getattr(model.config, "num_attention_heads", None)
    if n_heads and wanted % n_heads == 0 and width % (wanted // n_heads) == 0:
        size = wanted // n_heads
        groups = width // size
        if groups and n_heads % groups == 0 and is_linear(source):
            return groups, n_heads // groups, size
    return None
