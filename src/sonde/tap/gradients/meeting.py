"""Find the parameter uses whose gradients split into rows, by a test on the gradients.

Scale the loss of each row by another power of two. Look at the gradient that flows into an
operation: the blocks of its first axis scale by exactly these powers if and only if that axis holds
the rows one after another. So no shape has to be guessed, and tokens before rows, means over
the batch and routed tokens are told apart by what they do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.tap.gradients.graph import Graph, Use, edge, shape_after
from sonde.tap.gradients.rules import has_rule

DEEPEST = 4
Signature = tuple[tuple[str, str, int, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Meetings:
    """The parameter uses whose gradients split into rows, and all other parameters.

    Parameters
    ----------
    uses : mapping of str to tuple of Use
        By the parameter's name; empty where the loss does not depend on it.
    alone : tuple of str
        Parameters whose rows need a backward pass each.
    gradients : mapping of node to Tensor or None
        Gradients of the summed loss that were computed on the way.
    """

    uses: Mapping[str, tuple[Use, ...]]
    alone: tuple[str, ...]
    gradients: Mapping[Any, Tensor | None]


@dataclass(frozen=True)
class _Entry:
    """A parameter use that may split; the path gives the operations that lead to it."""

    name: str
    path: tuple[int, ...]
    use: Use


class Finder:
    """Finds where parameters meet rows in the graphs of a model, and caches its tests."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, Signature], dict[tuple[int, ...], bool]] = {}

    def find(self, losses: Float[Tensor, "row"], parameters: Mapping[str, Tensor]) -> Meetings:
        """Return where parameters meet their rows in the graph behind some losses."""
        graph, n = Graph(losses), len(losses)
        waiting = [
            _Entry(name, (i, j), use)
            for i, (name, p) in enumerate(parameters.items())
            for j, use in enumerate(graph.entries(p))
        ]
        signature = tuple(
            (e.name, e.use.node.name(), e.use.index, shape_after(e.use.node)) for e in waiting
        )
        trial = _Trial(losses, self._known.setdefault((n, signature), {}), {})
        uses: dict[str, list[Use]] = {name: [] for name in parameters}
        alone: set[str] = set()
        for _ in range(DEEPEST):
            waiting = _reachable(graph, waiting, n, alone)
            split = trial.split(waiting)
            for e in waiting:
                if split[e.path]:
                    uses[e.name].append(e.use)
                    alone |= set() if has_rule(e.use) else {e.name}
            waiting = _further(graph, [e for e in waiting if not split[e.path]], alone)
        alone |= {e.name for e in waiting}
        return Meetings(
            {name: tuple(met) for name, met in uses.items() if name not in alone},
            tuple(name for name in parameters if name in alone),
            trial.plain,
        )


def _reachable(graph: Graph, waiting: list[_Entry], n: int, alone: set[str]) -> list[_Entry]:
    """Return the entries whose first axis may hold rows, at these or later uses."""
    for _ in range(DEEPEST):
        shapes = [shape_after(e.use.node) for e in waiting]
        may = [bool(shape) and shape[0] % n == 0 for shape in shapes]
        if all(may):
            break
        closed = [e for e, open_ in zip(waiting, may, strict=True) if not open_]
        waiting = [e for e, open_ in zip(waiting, may, strict=True) if open_]
        waiting += _further(graph, closed, alone)
    return [e for e in waiting if e.name not in alone]


def _further(graph: Graph, waiting: Sequence[_Entry], alone: set[str]) -> list[_Entry]:
    """Return the operations after the pending uses; add names without any to ``alone``."""
    further: list[_Entry] = []
    for e in waiting:
        beyond = list(graph.beyond(e.use))
        alone |= set() if beyond else {e.name}
        further += [_Entry(e.name, (*e.path, i), use) for i, use in enumerate(beyond)]
    return [e for e in further if e.name not in alone]


@dataclass(frozen=True)
class _Trial:
    """Tests whether the first axis of a gradient holds the rows."""

    losses: Tensor
    known: dict[tuple[int, ...], bool]
    plain: dict[Any, Tensor | None]

    def split(self, waiting: Sequence[_Entry]) -> dict[tuple[int, ...], bool]:
        """Return, for each entry's path, whether its gradients split into rows."""
        n = len(self.losses)
        if n == 1:
            return {e.path: True for e in waiting}
        unknown = {e.path: e.use.node for e in waiting if e.path not in self.known}
        if not unknown:
            return self.known
        nodes = list(dict.fromkeys(unknown.values()))
        power = torch.arange(n, device=self.losses.device) * 7 % 11 - 5
        scale = torch.exp2(power.to(self.losses))
        self.plain.update(gradients_at(self.losses, nodes))
        scaled = gradients_at(self.losses * scale, nodes)
        alike = {node: _scales(self.plain[node], scaled[node], scale) for node in nodes}
        decided = {path: alike[node] for path, node in unknown.items()}
        self.known.update(
            {path: is_alike for path, is_alike in decided.items() if is_alike is not None}
        )
        return {**self.known, **{path: bool(is_alike) for path, is_alike in decided.items()}}


def gradients_at(
    losses: Float[Tensor, "row"], nodes: Sequence[Any]
) -> dict[Any, Float[Tensor, "..."] | None]:
    """Return the gradients of the summed losses with respect to some operations' outputs."""
    if not nodes:
        return {}
    edges = [edge(node) for node in nodes]
    slopes = torch.autograd.grad(losses.sum(), edges, retain_graph=True, allow_unused=True)
    return dict(zip(nodes, slopes, strict=True))


def _scales(plain: Tensor | None, scaled: Tensor | None, scale: Tensor) -> bool | None:
    """Return whether a gradient scales with the rows of its first axis, or None if it is zero."""
    if plain is None or scaled is None or not plain.numel():
        return None
    wanted = plain.reshape(len(scale), -1).to(scale) * scale[:, None]
    away = (scaled.reshape(wanted.shape).to(scale) - wanted).abs()
    largest = wanted.abs().amax(1, keepdim=True)
    return bool((away <= 1e-3 * largest).all()) if bool((largest > 0).any()) else None
