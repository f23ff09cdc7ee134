"""Move scales of a layer's inputs into the preceding module, without changing the answers.

A linear layer that reads ``x`` gives the same for ``x / t`` if its columns are multiplied by ``t``.
The division is written into the gain of a norm, or the rows of a linear layer, before it. Each
candidate module is tested: its tensors are changed, and the answers must not change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.compress._layers import Weighted
from sonde.core.inputs import Inputs, Model
from sonde.tap import calls_of, place_of
from sonde.tap.hooks.holding import in_eval
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
    place = place_of(module, batch)
    args, kwargs = place.call(batch.args, batch.kwargs)
    names = {part: name for name, part in module.named_modules() if _width(part)}
    chosen: dict[nn.Module, Weighted] = {one.module: one for one in layers if one.is_linear}
    calls = [(part, id(x)) for part, x in calls_of(module, list(names), args, kwargs)]
    counts = {part: sum(p is part for p, _ in calls) for part, _ in calls}
    answers = answers_of(module, args, kwargs)
    groups: list[ScaleGroup] = []
    for i, (first, key) in enumerate(calls):
        if first not in chosen or key in {k for _, k in calls[:i]}:
            continue
        readers = [part for part, k in calls if k == key]
        if any(part not in chosen or counts[part] > 1 for part in readers):
            continue
        before = [p for p, _ in reversed(calls[:i]) if counts[p] == 1 and _fits(model, p, first)]
        for source in before[:MOST_TRIED]:
            heads = _fits(model, source, first)
            group = ScaleGroup(tuple(chosen[p] for p in readers), names[source], heads or (0, 0, 0))
            if _is_same(module, group, answers, args, kwargs):
                groups.append(group)
                break
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


def _is_same(
    module: nn.Module, group: ScaleGroup, answers: Tensor, args: Any, kwargs: Mapping[str, Any]
) -> bool:
    draw = torch.Generator().manual_seed(0)
    width = in_and_out(group.layers[0].module)[0]
    scale = group.shared(torch.rand(width, generator=draw, dtype=torch.float64) * 1.5 + 0.5)
    new = scaled_tensors(module, [(group, scale)])
    named = dict(module.named_parameters())
    other = with_tensors(module, {name: x.to(named[name]) for name, x in new.items()})
    gap = (answers_of(other, args, kwargs) - answers).abs().max()
    coarse = max(SAME, 8 * torch.finfo(next(module.parameters()).dtype).eps)
    return bool(gap <= coarse * answers.abs().max())


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
