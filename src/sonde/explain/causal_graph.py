"""Units that a class depends on, found layer by layer by removing each unit's output.

For linear and convolutional layers, whatever stands between them: functions of single units, norms,
pooling, ways around a layer. For a transformer's residual stream take ``CircuitSearch``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sonde.core.errors import InputError, SiteError
from sonde.core.explainer import Explainer
from sonde.core.few_groups import widen_error
from sonde.core.inputs import Model
from sonde.core.ranges import check_ranges
from sonde.core.result import Result
from sonde.core.site import Site
from sonde.engine.progress import Bar
from sonde.explain._runs import TwoRuns
from sonde.explain.objective import Objective

Unit = tuple[str, int]
ROWS = 4096
AFFINE = 1e-3
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@final
@dataclass(frozen=True, kw_only=True)
class CausalEdges(Result):
    """Units that a class depends on, and the edges between them.

    ``value`` is the mean effect of each edge: how much the class's logit falls when what the parent
    sends to the child is replaced by its baseline. ``edges`` are (layer, unit) of parent and child;
    the child of the last layer's edges is the class. ``sums``, ``squares`` and ``n`` are the state:
    the states of two disjoint sets of rows add up. ``screened`` is the number of edges that were
    not intervened on, because their first-order effect is small.
    """

    title: ClassVar[str] = "Mean effect of each edge of the graph"
    value: Float[Tensor, "edge"]  # pyright: ignore[reportGeneralTypeIssues]
    edges: tuple[tuple[Unit, Unit], ...]
    sums: Float[Tensor, "edge"]
    squares: Float[Tensor, "edge"]
    thresholds: tuple[float, ...]
    necessity: float
    sufficiency: float
    random_necessity: float
    screened: int = 0

    @property
    def units(self) -> set[Unit]:
        """Units in the graph, without the class."""
        return {parent for parent, _ in self.edges}


@final
@dataclass(frozen=True)
class CausalGraph(Explainer):
    """Graph of the units whose messages raise a class's logit, found from the answer backwards.

    The message of unit j to unit i of the next layer is ``w_ij a_j``; between channels the weight
    is a kernel. Its path intervention takes ``w_ij (a_j - baseline_j)`` from i's pre-activation,
    leaves all other messages of j alone, also those around the layer, and runs on; the mean fall of
    the logit is the edge's effect. Parents of the class with an effect of at least ``threshold``
    are kept, and the search goes on with their own parents.

    Range        mean fall of the logit; larger = more of the class; negative = held back.
    Cost         a forward of the later layers for each edge of a kept child, or, with ``screen``,
                 for each edge that the gradient does not rule out.
    Assumes      layers whose outputs are sums over the units that they read; a unit is a channel
                 of a convolution, else a place on the last axis. Redundant units hide one another:
                 each alone may be taken away. ``together`` takes them away in groups of equal
                 activations.
    Differs      the abstract gives no formulas: the definition is ours.

    Parameters
    ----------
    threshold : float or None, default=None
        Least absolute effect of a kept edge; None is the quantile ``quantile`` of the absolute
        effects of each layer. An edge without any effect is never kept.
    quantile : float, default=0.9
        Quantile of a layer's absolute effects, in [0, 1), that ``threshold=None`` takes.
    baseline : {"zero", "mean"}, default="zero"
        What a unit sends instead: nothing, or its mean over the reference rows of ``explain``. The
        mean over rows of the class itself would keep the class.
    screen : float, default=0.0
        Edges are intervened on if their first-order effect is at least this share of the largest.
    together : bool, default=False
        Take units with the same activations away together.
    seed : int, default=0
        Seed of the random units beside the graph's.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> net[0].weight.data, net[2].weight.data = torch.eye(2), torch.tensor([[1.0, 0.0]])
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 0.5]])
    >>> CausalGraph(threshold=0.1).explain(net, x, site=["0", "2"], target=0).edges[0]
    (('0', 0), ('class', 0))

    References
    ----------
    pathinterventions
    """

    threshold: float | None = None
    quantile: float = 0.9
    baseline: Literal["zero", "mean"] = "zero"
    screen: float = 0.0
    together: bool = False
    seed: int = 0
    paper: ClassVar[str] = "pathinterventions"

    def __post_init__(self) -> None:
        check_ranges(self, quantile="[0, 1)", screen="[0, 1)")

    def explain(
        self,
        model: Model | nn.Module,
        inputs: Any,
        *,
        site: Sequence[str],
        target: int,
        reference: Any = None,
        progress: bool = False,
    ) -> CausalEdges:
        """Return the graph of one class.

        Parameters
        ----------
        model : Model or nn.Module
        inputs : Tensor, tuple or dict
            Inputs of the class.
        site : sequence of str
            Linear or convolutional layers in order, from the one whose units come first; the last
            one gives the logits.
        target : int
            The class.
        reference : Tensor, tuple or dict, optional
            Inputs of all classes, whose mean is the baseline "mean".

        Raises
        ------
        InputError
            If the baseline is the mean and there is no reference, or the other way round.
        SiteError
            If a layer does not sum over units, or does not take the units of the layer before.
        """
        if (reference is None) != (self.baseline == "zero"):
            raise InputError(
                "CausalGraph.explain: expected reference inputs with baseline='mean' and none "
                f"with 'zero', got baseline={self.baseline!r} and reference of type "
                f"{type(reference).__name__}. Give inputs of all classes: reference=x_all."
            )
        layers = site
        net = _Net(model, inputs, layers, target, reference)
        children = torch.tensor([target])
        edges: list[tuple[Unit, Unit]] = []
        rows: list[Tensor] = []
        thresholds: list[float] = []
        screened = 0
        with Bar("causal graph", len(layers) - 1, shown=progress) as bar:
            for level in reversed(range(1, len(layers))):
                effects, skipped = net.effects(level, children, self.screen, self.together)
                mean = effects.mean(2)
                least = self._least(mean)
                strong = (mean.abs() >= least) & (mean != 0)
                thresholds.append(least)
                screened += skipped
                last = level == len(layers) - 1
                for i, j in strong.nonzero().tolist():
                    child = ("class", target) if last else (layers[level], int(children[i]))
                    edges.append(((layers[level - 1], j), child))
                    rows.append(effects[i, j])
                children = strong.any(0).nonzero().flatten()
                bar.advance(1)
                if not len(children):
                    break
        return self._judged(net, edges, rows, tuple(thresholds), screened)

    def _least(self, mean: Float[Tensor, "child parent"]) -> float:
        if self.threshold is not None:
            return self.threshold
        return float(torch.quantile(mean.abs().flatten(), self.quantile))

    def _judged(
        self,
        net: "_Net",
        edges: list[tuple[Unit, Unit]],
        rows: list[Tensor],
        thresholds: tuple[float, ...],
        screened: int,
    ) -> CausalEdges:
        effects = torch.stack(rows) if rows else torch.zeros(0, net.n, dtype=torch.float64)
        chosen = {parent for parent, _ in edges}
        generator = torch.Generator().manual_seed(self.seed)
        n, mean = net.n, effects.mean(1)
        spread = effects.var(1) if n > 1 else torch.full_like(mean, torch.nan)
        return CausalEdges(
            value=mean,
            se=widen_error((spread / n).sqrt(), n) if n > 1 else None,
            n=n,
            unit="logit",
            direction="higher",
            conventions={"method": repr(self), "objective": f"logit[{net.target}]"},
            edges=tuple(edges),
            sums=effects.sum(1),
            squares=effects.square().sum(1),
            thresholds=thresholds,
            necessity=net.accuracy(chosen, without=True),
            sufficiency=net.accuracy(chosen, without=False),
            random_necessity=net.accuracy(net.drawn(chosen, generator), without=True),
            screened=screened,
        )


class _Net:
    """Successive layers, and the model's answers without some messages between the layers."""

    def __init__(
        self, model: Model | nn.Module, x: Any, layers: Sequence[str], target: int, reference: Any
    ) -> None:
        self.runs = TwoRuns(model, x, x, Objective(target=target))
        self.layers, self.target = layers, target
        if len(layers) < 2:
            raise SiteError(f"CausalGraph: expected two layers or more, got {list(layers)}.")
        takes = [Site(name, port="in") for name in layers]
        gives = [Site(name) for name in layers]
        self.whole, seen = self.runs.states("clean", [*takes, *gives])
        self.n = len(self.whole)
        self.sums = [
            _Sum.of(name, self.runs.module.get_submodule(name), seen[take], seen[give])
            for name, take, give in zip(layers, takes, gives, strict=True)
        ]
        for before, after in pairwise(self.sums):
            after.listen(before)
        if reference is None:
            self.rest = [torch.zeros_like(one.sent[:1]) for one in self.sums]
        else:
            others = TwoRuns(model, reference, reference, Objective(target=target))
            _, usual = others.states("clean", takes)
            self.rest = [usual[site].mean(0, keepdim=True) for site in takes]

    def effects(
        self, level: int, children: Int[Tensor, "child"], screen: float, together: bool
    ) -> tuple[Float[Tensor, "child parent row"], int]:
        """Return the fall of the logit without each message into some units of a layer."""
        layer, site = self.sums[level], Site(self.layers[level])
        n_parents = len(layer.owner)
        groups = layer.groups() if together else torch.eye(n_parents, dtype=torch.bool)
        taken = (groups.double() @ layer.owner.double()) > 0
        _, _, slopes = self.runs.gradients("clean", [site])
        slope = slopes[site].movedim(layer.axis, -1)[..., children]
        # Message of each group of parents to the children, everywhere: (parent, row, .., child).
        message = layer.messages(taken, self.rest[level], children)
        first = (message * slope).flatten(2, -2).sum(2) if message.ndim > 3 else message * slope
        first = first.mean(1).abs().T
        todo = (first >= screen * first.max()).nonzero() if screen else _all(first)
        by_parent = torch.zeros(len(children), n_parents, self.n, dtype=torch.float64)
        pre = layer.given.movedim(layer.axis, -1)
        for part in todo.split(max(1, ROWS // self.n)):
            states = pre.repeat(len(part), *[1] * pre.ndim)
            for k, (i, j) in enumerate(part.tolist()):
                states[k, ..., children[i]] -= message[j, ..., i]
            states = states.flatten(0, 1).movedim(-1, layer.axis)
            numbers = self.runs.patched("clean", site, states)
            by_parent[part[:, 0], part[:, 1]] = (self.whole - numbers).double().cpu()
        return by_parent, len(first.flatten()) - len(todo)

    def accuracy(self, units: set[Unit], *, without: bool) -> float:
        """Return the fraction of rows that keep their class with other units at the baseline."""

        def act(site: Site, leaf: Tensor) -> Tensor:
            level = self.layers.index(site.path)
            layer = self.sums[level]
            here = [j for name, j in units if name == self.layers[level - 1]]
            off = layer.owner[here].any(0)
            return layer.at_rest(leaf, off if without else ~off, self.rest[level])

        sites = [Site(name, port="in") for name in self.layers[1:]]
        outputs = self.runs.acting("clean", sites, act)
        best = self.runs.log_probs("clean", outputs).argmax(-1)
        return float((best == self.target).double().mean())

    def drawn(self, units: set[Unit], generator: torch.Generator) -> set[Unit]:
        """Return random units, with as many units in each layer as ``units`` contains."""
        chosen_units: set[Unit] = set()
        for name, after in zip(self.layers, self.sums[1:], strict=False):
            n = sum(layer == name for layer, _ in units)
            order = torch.randperm(len(after.owner), generator=generator)
            chosen_units |= {(name, j) for j in order[:n].tolist()}
        return chosen_units


class _Sum:
    """A layer whose outputs are sums over its input units, with its values in one run.

    ``owner`` says which places of its input each unit of the layer before fills.
    """

    owner: Bool[Tensor, "parent place"]

    def __init__(self, name: str, module: nn.Module, sent: Tensor, given: Tensor) -> None:
        self.name, self.module, self.sent, self.given = name, module, sent, given
        self.is_kernel = isinstance(module, CONVOLUTIONS)
        self.axis = 1 if self.is_kernel else -1

    @classmethod
    @torch.no_grad()
    def of(cls, name: str, module: nn.Module, sent: Tensor, given: Tensor) -> "_Sum":
        """Return a layer with its input and its output.

        Raises
        ------
        SiteError
            If the output is no sum over units.
        """
        bend = given + 2 * module(-sent / 2) - 3 * module(torch.zeros_like(sent))
        near = max(AFFINE, 8 * torch.finfo(given.dtype).eps)
        if float(bend.abs().max()) > near * float(given.abs().max().clamp(min=1e-30)):
            raise SiteError(
                f"CausalGraph: expected layers whose outputs are sums over units, linear or "
                f"convolutional, got {name}, a {type(module).__name__}."
            )
        return cls(name, module, sent, given)

    def listen(self, before: "_Sum") -> None:
        """Record the positions of the input that hold each unit of the previous layer.

        Raises
        ------
        SiteError
            If the layer does not take the units of the layer before.
        """
        n, places = before.given.shape[before.axis], self.sent.shape[self.axis]
        if places % n or (self.is_kernel and places != n):
            raise SiteError(
                f"CausalGraph: expected {self.name} to read the {n} units of {before.name}, "
                f"got {places} inputs. Name successive layers."
            )
        # Flattened maps lie channel by channel, flattened tokens place by place.
        unit = torch.arange(places)
        unit = unit // (places // n) if before.is_kernel else unit % n
        self.owner = unit == torch.arange(n)[:, None]

    def at_rest(self, x: Tensor, off: Bool[Tensor, "place"], rest: Tensor) -> Tensor:
        """Return the input with some positions of its unit axis set to the baseline."""
        shape = [1] * x.ndim
        shape[self.axis] = -1
        return torch.where(off.to(x.device).reshape(shape), rest.to(x), x)

    @torch.no_grad()
    def messages(
        self, taken: Bool[Tensor, "group place"], rest: Tensor, children: Int[Tensor, "child"]
    ) -> Float[Tensor, "group row *place child"]:
        """Return how much some outputs fall with each group of inputs at the baseline."""
        parts: list[Tensor] = []
        for some in taken.split(max(1, ROWS // len(self.sent))):
            x = torch.cat([self.at_rest(self.sent, off, rest) for off in some])
            left = self.module(x).movedim(self.axis, -1)[..., children]
            whole = self.given.movedim(self.axis, -1)[..., children]
            parts.append(whole - left.unflatten(0, (len(some), -1)))
        return torch.cat(parts)

    def groups(self) -> Bool[Tensor, "parent parent"]:
        """Return, for each input unit of this layer, the units that have equal activations."""
        places = self.sent.movedim(self.axis, 0).flatten(1).double()
        units = torch.stack([places[owned].flatten() for owned in self.owner])
        scale = units.abs().max().clamp(min=1e-300)
        return torch.cdist(units, units, p=float("inf")) <= 1e-6 * scale


def _all(like: Float[Tensor, "child parent"]) -> Int[Tensor, "edge 2"]:
    return torch.ones_like(like).nonzero()
