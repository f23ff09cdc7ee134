"""Train once for all combinations of bit widths, then round to any of them without training.

For a model that must fit many devices. At a single fixed width, training for that width alone is
cheaper.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from sonde.compress._grid import check_grid, method_of, rounded
from sonde.compress._layers import Weighted, weighted_layers
from sonde.compress.allocate import allocate
from sonde.compress.fidelity import fidelity
from sonde.core.errors import InputError
from sonde.core.inputs import InputBatch, Inputs, Model
from sonde.data import open_inputs
from sonde.stats.divergence import kl_divergence
from sonde.weights import Change, Grid, Rewrite, RewritePlan, as_model
from sonde.weights.tuning import Trainee, row_losses, tuned, with_copy

Factors = tuple[Float[Tensor, "out rank"], Float[Tensor, "rank in"]]
MOST_RUN = 16
"""Examples on which answers are compared, for each layer and width."""
Sampling = Literal["sums", "schedule", "layers"]
SWEEP, SPREAD = 32, 0.15
"""Batches in which a schedule goes from the smallest mean width to the largest and back; standard
deviation of the mean width at one batch, in units of the whole range."""


@final
@dataclass(frozen=True, eq=False)
class OnceForAllBits(Rewrite):
    """Round each layer to its own width, with a small correction trained for that width.

    A layer of weight ``W`` at ``b`` bits becomes ``Q_b(W + A_b B_b)``, where ``Q_b`` rounds as
    ``RTN`` does and the thin matrices are shared by all mixtures. ``train`` finds them in one run:
    each step draws a mixture and lowers the divergence of its answers from the model's own.

    Range        as ``RTN`` at the same widths; without corrections it is ``RTN`` bit for bit.
    Cost         ``train``: two forwards and a backward for each batch; then one rounding.
    Assumes      inputs of the kind that the model will meet.
    Differs      from the paper: corrections are rounded with the weight, so that packed codes are
                 all that is kept; gradients pass straight through the rounding; by default all
                 mean widths are drawn equally often, where the paper's schedule moves over them.

    Parameters
    ----------
    bits : int or mapping of str to int, default=4
        Width of all layers, or of each layer by its name.
    group : int, default=32
        Entries of a row that share a scale; 0: all of them.
    corrections : mapping of str to mapping of int to (Tensor, Tensor), optional
        For each layer and width both thin matrices; from ``train``.
    layers : sequence of str, optional
        Patterns of layers' names; all linear layers by default, but those tied to an embedding.

    References
    ----------
    yi2024onceforall
    """

    bits: int | Mapping[str, int] = 4
    group: int = 32
    corrections: Mapping[str, Mapping[int, Factors]] = field(default_factory=dict[str, Any])
    layers: Sequence[str] | None = None
    paper: ClassVar[str] = "yi2024onceforall"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"bits": {"10": 2, "11": 3}, "group": 5},
        {"bits": 3, "layers": ("*",)},
    )

    def __post_init__(self) -> None:
        for bits in self.bits.values() if isinstance(self.bits, Mapping) else (self.bits,):
            check_grid("OnceForAllBits", bits, self.group)

    def planned(self, model: Model) -> RewritePlan:
        """Return the rounded weights."""
        layers = weighted_layers("OnceForAllBits", model, self.layers)
        widths = dict.fromkeys((one.name for one in layers), self.bits)
        if isinstance(self.bits, Mapping):
            if self.bits.keys() != widths.keys():
                raise InputError(
                    "OnceForAllBits.plan: expected a width for each layer, got "
                    f"{sorted(self.bits)} for {sorted(widths)}."
                )
            widths = dict(self.bits)
        changes: dict[str, Change] = {}
        for layer in layers:
            bits, weight = int(widths[layer.name]), layer.matrix()  # pyright: ignore[reportArgumentType]
            if bits in self.corrections.get(layer.name, {}):
                left, right = self.corrections[layer.name][bits]
                weight = weight + left.double() @ right.double()
            grid = Grid.over(bits, self.group, weight.shape[1])
            changes[layer.weight] = rounded(weight, grid, "asymmetric", layer=layer)
        options = {"bits": self.bits, "group": self.group, "trained": bool(self.corrections)}
        return RewritePlan.of(model, changes, method_of("OnceForAllBits", options))

    @staticmethod
    def train(
        model: Model | nn.Module,
        data: Any,
        widths: Sequence[int] = (2, 3, 4),
        *,
        group: int = 32,
        rank: int = 8,
        rate: float = 1e-3,
        epochs: int = 1,
        seed: int = 0,
        layers: Sequence[str] | None = None,
        sampling: Sampling = "sums",
        is_shared: bool = False,
        progress: bool = True,
    ) -> "OnceForAllBits":
        """Return the rewrite with corrections for all combinations of some widths.

        Parameters
        ----------
        model : Model or nn.Module
        data : anything that ``sonde.data.open_inputs`` takes
            Labels are not needed.
        widths : sequence of int, default=(2, 3, 4)
        group : int, default=32
        rank : int, default=8
        rate, epochs, seed
            Of the training by Adam.
        layers : sequence of str, optional
            As in the class.
        sampling : "sums", "schedule" or "layers", default="sums"
            How a step draws its mixture. "sums": every mean width is equally likely. "schedule":
            the paper's, a normal distribution of the mean width, whose centre moves from the
            smallest width to the largest and back within 32 batches. "layers": every layer by
            itself, so that few steps are near the smallest or the largest mean width.
        is_shared : bool, default=False
            Train one correction of each layer for all its widths. The paper trains one for each.
        progress : bool, default=True
        """
        if sampling not in get_args(Sampling):
            raise InputError(
                "OnceForAllBits.train: expected sampling to be one of "
                f"{', '.join(get_args(Sampling))}, got {sampling!r}."
            )
        live = as_model(model)
        inputs = data if isinstance(data, Inputs) else open_inputs(live, data)
        for bits in widths:
            check_grid("OnceForAllBits.train", bits, group)
        weighted = weighted_layers("OnceForAllBits.train", live, layers)
        new = with_copy(live.module)
        new.requires_grad_(False)
        draw = torch.Generator().manual_seed(seed)
        own = {one.name: _Adapted(one, widths, group, rank, draw, is_shared) for one in weighted}
        for name, adapted in own.items():
            register_parametrization(new.get_submodule(name), "weight", adapted, unsafe=True)
        teacher = row_losses(live, live.module, inputs)
        mixtures = _Mixtures(len(own), widths, sampling)

        def loss(trainee: Trainee, batch: InputBatch) -> Tensor:
            drawn = mixtures.draw(trainee.draw)
            for adapted, bits in zip(own.values(), drawn, strict=True):
                adapted.bits = bits
            with torch.no_grad():
                p = teacher.answers(batch).log_p
            q = trainee.losses.answers(batch).log_p
            return kl_divergence(p, q).mean()

        tune = partial(tuned, live, inputs, loss, rate=rate, epochs=epochs, seed=seed)
        tune(label="once for all bits", start=new, progress=progress)
        corrections = {name: adapted.factors() for name, adapted in own.items()}
        return OnceForAllBits(max(widths), group, corrections, layers)

    def within(self, model: Model | nn.Module, data: Any, bits: float) -> "OnceForAllBits":
        """Return the rewrite with the combination of least cost within a mean width.

        The cost of a layer at a width is the divergence of the answers with all other layers at the
        largest width, on 16 examples.

        Parameters
        ----------
        model : Model or nn.Module
        data : anything that ``sonde.data.open_inputs`` takes
        bits : float
            Mean over weights.
        """
        live = as_model(model)
        inputs = data if isinstance(data, Inputs) else open_inputs(live, data)
        layers = weighted_layers("OnceForAllBits.within", live, self.layers)
        widths = sorted({b for one in self.corrections.values() for b in one})
        if not widths:
            raise InputError("OnceForAllBits.within: expected corrections. Call train first.")
        best = {one.name: widths[-1] for one in layers}
        costs = torch.zeros(len(layers), len(widths), dtype=torch.float64)
        for i, layer in enumerate(layers):
            for k, width in enumerate(widths[:-1]):
                mixed = replace(self, bits={**best, layer.name: width})
                measured = fidelity(live, mixed.plan(live).fold(live), inputs, stop=MOST_RUN)
                costs[i, k] = measured.kl
        numbers = torch.tensor([one.module.weight.numel() for one in layers])
        sizes = numbers[:, None] * torch.tensor(widths)
        chosen = allocate(costs, sizes, int(bits * int(numbers.sum())))
        pairs = zip(layers, chosen, strict=True)
        return replace(self, bits={layer.name: widths[k] for layer, k in pairs})


class _Mixtures:
    """Draw a width for each of ``n`` layers, step after step."""

    def __init__(self, n: int, widths: Sequence[int], sampling: Sampling) -> None:
        self.n, self.widths, self.sampling, self.step = n, widths, sampling, 0

    def draw(self, draw: torch.Generator) -> list[int]:
        """Return the mixture of the next step."""
        step, self.step = self.step, self.step + 1
        if self.sampling == "layers":
            drawn = torch.randint(len(self.widths), (self.n,), generator=draw).tolist()
            return [self.widths[k] for k in drawn]
        if self.sampling == "sums":
            return draw_widths(self.n, self.widths, draw)
        return draw_widths(self.n, self.widths, draw, 1 - abs(1 - 2 * (step % SWEEP) / SWEEP))


def draw_widths(
    n: int, widths: Sequence[int], draw: torch.Generator, centre: float | None = None
) -> list[int]:
    """Return a width for each of ``n`` layers, drawn by first drawing their sum.

    All sums that exist are equally likely, or weighted by a normal distribution around a
    ``centre`` between 0, the smallest sum, and 1, the largest; all mixtures of a sum are equally
    likely. Widths drawn layer by layer would nearly always have a sum near the middle.
    """
    ways = [{0: 1}]
    for _ in range(n):
        more: dict[int, int] = {}
        for total, count in ways[-1].items():
            for width in widths:
                more[total + width] = more.get(total + width, 0) + count
        ways.append(more)
    sums = sorted(ways[-1])
    if centre is None:
        total = sums[int(torch.randint(len(sums), (1,), generator=draw))]
    else:
        at = torch.tensor(sums, dtype=torch.float64)
        away = (at - at[0]) / (at[-1] - at[0]).clamp(min=1) - centre
        chances = (-((away / SPREAD) ** 2) / 2).softmax(0)
        total = sums[int(torch.multinomial(chances, 1, generator=draw))]
    drawn: list[int] = []
    for left in range(n - 1, -1, -1):
        chances = torch.tensor(
            [ways[left].get(total - w, 0) / ways[left + 1][total] for w in widths],
            dtype=torch.float64,
        )
        width = widths[int(torch.multinomial(chances, 1, generator=draw))]
        drawn.append(width)
        total -= width
    return drawn


class _Adapted(nn.Module):
    """A weight with its correction, rounded to the current width."""

    def __init__(
        self,
        layer: Weighted,
        widths: Sequence[int],
        group: int,
        rank: int,
        draw: torch.Generator,
        is_shared: bool = False,
    ) -> None:
        super().__init__()
        n_out, n_in = layer.matrix().shape
        self.bits, self.group = max(widths), group
        self.source = {b: str(widths[0] if is_shared else b) for b in widths}
        keys = dict.fromkeys(self.source.values())
        self.lefts = nn.ParameterDict({key: torch.zeros(n_out, rank) for key in keys})
        self.rights = nn.ParameterDict(
            {key: torch.randn(rank, n_in, generator=draw) / n_in**0.5 for key in keys}
        )

    def forward(self, weight: Tensor) -> Tensor:
        """Return the rounded weight, with straight-through gradients."""
        key = self.source[self.bits]
        wanted = weight.flatten(1) + self.lefts[key] @ self.rights[key]
        exact = wanted.detach().double()
        rounded_weight = rounded(
            exact, Grid.over(self.bits, self.group, exact.shape[1]), "asymmetric"
        ).of(exact)
        return (wanted + (rounded_weight - exact).to(wanted)).reshape(weight.shape)

    def factors(self) -> dict[int, Factors]:
        """Return both thin matrices for each width."""
        return {
            b: (self.lefts[key].detach(), self.rights[key].detach())
            for b, key in self.source.items()
        }
