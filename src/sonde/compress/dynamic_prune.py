"""Compute only the filters of a convolution that a small predictor selects for each input.

For convolutional classifiers whose inputs use different filters. Where all inputs heat the same
filters, a static mask (``PruneWeights``) costs less.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, conv2d

from sonde.compress._distilled import ROWS, answers_of, batches_of, copied
from sonde.core.errors import SiteError
from sonde.core.inputs import Inputs, Model
from sonde.core.ranges import check_ranges
from sonde.engine.steps import Descent
from sonde.stats.divergence import kl_divergence


@final
@dataclass(frozen=True, eq=False)
class DynamicModel:
    """A model whose convolutions select their filters for each input.

    Parameters
    ----------
    module : nn.Module
        A copy of the model, in eval mode.
    saved : float
        Share of the multiplications of the chosen layers that the targets leave out, known before
        training: ``1 - mean (k / C) (k' / C')``, with the layer before it.
    losses : tuple of float
        Loss of each step.
    """

    module: nn.Module
    saved: float
    losses: tuple[float, ...]


@final
@dataclass(frozen=True)
class DynamicPrune:
    """Train predictors of the most active filters, together with the masked network.

    A filter's heat is the mean absolute value of its map, as a share of all filters'. The target is
    the smallest set of filters whose heat sums to ``heat``. A predictor sees the maximum of each
    map that enters the layer and is trained by its own loss alone; the net behind the masks learns
    the probabilities of the whole model. In eval mode rows with the same filters are computed
    together, without the others and without inputs that are zero.

    Range        ``heat=1`` keeps every filter that is not zero and gives the net's answers, before
                 any training.
    Cost         a forward and a backward for each step; at inference a predictor for each layer.
    Assumes      convolutions without groups; a batch of two rows or more in training.
    Differs      from the paper: the whole model's probabilities in place of labels.

    Parameters
    ----------
    heat : float, default=0.9
        In (0, 1].
    ratio : int, default=4
        A predictor has one hidden unit for this number of incoming maps.
    layers : sequence of str, optional
        Convolutions; all but the first by default.
    steps : int, default=300
        Number of training steps.
    rate : float, default=1e-3
        Learning rate of Adam.
    seed : int, default=0
        Seed of the predictors' initial weights and of the order of batches.

    References
    ----------
    elkerdawy2022ftwt
    """

    heat: float = 0.9
    ratio: int = 4
    layers: Sequence[str] | None = None
    steps: int = 300
    rate: float = 1e-3
    seed: int = 0
    paper: ClassVar[str] = "elkerdawy2022ftwt"

    def __post_init__(self) -> None:
        check_ranges(self, heat="(0, 1]", ratio=">= 1", steps=">= 0")

    def fit(self, model: Model, inputs: Inputs) -> DynamicModel:
        """Return a copy of a model with trained predictors and masked convolutions.

        Parameters
        ----------
        model : Model
            A classifier with convolutions.
        inputs : Inputs
        """
        net, names = copied(model.module), self._names(model.module)
        gates: list[DynamicConv] = []
        for number, name in enumerate(names):
            conv = cast("nn.Conv2d", net.get_submodule(name))
            gates.append(DynamicConv(conv, self.heat, self.ratio, self.seed + number))
            owner, _, leaf = name.rpartition(".")
            setattr(net.get_submodule(owner), leaf, gates[-1])
        net.eval()
        for gate in gates:
            gate.train()
        saved = _saved(model.module, inputs, names, self.heat)
        draw = torch.Generator().manual_seed(self.seed)

        def loss(batch: Any) -> Tensor:
            wanted = answers_of(model.module, *batch).log_softmax(1).detach()
            log_q = answers_of(net, *batch, training=True).log_softmax(1)
            task = kl_divergence(wanted, log_q).mean()
            return task + torch.stack([gate.loss for gate in gates]).sum()

        parameters = [p.requires_grad_() for p in net.parameters()]
        losses = Descent("DynamicPrune", parameters, self.rate).run(
            loss, batches_of(model.module, inputs, self.steps, draw)
        )
        return DynamicModel(net.eval(), saved, losses)

    def _names(self, module: nn.Module) -> list[str]:
        convolutions = [n for n, m in module.named_modules() if isinstance(m, nn.Conv2d)]
        names = list(self.layers) if self.layers is not None else convolutions[1:]
        modules: dict[str, Any] = dict(module.named_modules())
        wrong = [
            n for n in names if not isinstance(modules.get(n), nn.Conv2d) or modules[n].groups > 1
        ]
        if wrong or not names:
            raise SiteError(
                f"DynamicPrune: expected convolutions without groups, got {wrong or 'none'} in "
                f"{type(module).__name__}. Name them with layers."
            )
        return names


def hot_filters(z: Float[Tensor, "row filter h w"], heat: float) -> Bool[Tensor, "row filter"]:
    """Return the smallest set of filters of each row that makes up a fraction of the activation.

    Heat is the mean absolute value of a map. Filters without heat are never in the set; of equal
    filters the first is taken.

    Parameters
    ----------
    z : Float[Tensor, "row filter h w"]
        Activations of the filters.
    heat : float
        Fraction of the activation that the filters must reach, in (0, 1].
    """
    mass = z.double().abs().mean((2, 3))
    order = mass.sort(dim=1, descending=True, stable=True).indices
    ordered = mass.gather(1, order)
    before = ordered.cumsum(1) - ordered
    total = ordered.sum(1, keepdim=True)
    # a filter is needed if those before it fall short by more than rounding
    needed = (before < heat * total * (1 - 1e-12)) & (ordered > 0)
    if heat == 1:
        needed = ordered > 0
    return torch.zeros_like(needed).scatter(1, order, needed)


class DynamicConv(nn.Module):
    """A convolution that computes only the filters that a predictor selects for each input.

    Parameters
    ----------
    conv : nn.Conv2d
    heat : float
    ratio : int
    seed : int
    """

    def __init__(self, conv: nn.Conv2d, heat: float, ratio: int, seed: int) -> None:
        super().__init__()
        self.conv, self.heat = conv, heat
        hidden = max(conv.in_channels // ratio, 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.predictor = nn.Sequential(
                nn.Linear(conv.in_channels, hidden),
                nn.BatchNorm1d(hidden),
                nn.ReLU(),
                nn.Linear(hidden, conv.out_channels),
            ).to(conv.weight)
        self.loss: Tensor = conv.weight.new_zeros(())
        self.target: Tensor | None = None
        self.chosen: Tensor | None = None

    def forward(self, x: Float[Tensor, "row channel h w"]) -> Float[Tensor, "row filter h2 w2"]:
        """Return the maps of the selected filters, with zeros for all other filters."""
        if self.heat == 1:  # every filter that is not zero: nothing to predict
            z = self.conv(x)
            self.chosen = self.target = hot_filters(z.detach(), 1.0)
            self.loss = z.new_zeros(())
            return z
        logits = self.predictor(x.detach().amax((2, 3)))
        chosen = self.chosen = logits.detach() > 0
        if not self.training:
            return self._computed(x, chosen)
        z = self.conv(x)
        self.target = hot_filters(z.detach(), self.heat)
        self.loss = binary_cross_entropy_with_logits(logits, self.target.to(logits))
        return z * chosen[:, :, None, None]

    def _computed(self, x: Tensor, chosen: Bool[Tensor, "row filter"]) -> Tensor:
        kinds, kind = chosen.unique(dim=0, return_inverse=True)
        out: Tensor | None = None
        for i, mask in enumerate(kinds):
            rows = kind == i
            own = x[rows]
            live = own.abs().amax((0, 2, 3)) > 0
            bias = None if self.conv.bias is None else self.conv.bias[mask]
            z = self._part(own[:, live], self.conv.weight[mask][:, live], bias)
            if out is None:
                out = z.new_zeros(len(x), chosen.shape[1], *z.shape[2:])
            out[rows.nonzero(), mask.nonzero()[:, 0]] = z
        assert out is not None
        return out

    def _part(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        c = self.conv
        if c.padding_mode != "zeros":
            x = nn.functional.pad(x, c._reversed_padding_repeated_twice, mode=c.padding_mode)
            return conv2d(x, weight, bias, c.stride, 0, c.dilation)
        return conv2d(x, weight, bias, c.stride, cast("Any", c.padding), c.dilation)


def _saved(module: nn.Module, inputs: Inputs, names: Sequence[str], heat: float) -> float:
    """Return the fraction of the convolutions' multiplications that the targets save."""
    kept: list[tuple[nn.Conv2d, Tensor, int]] = []

    def keep(conv: Any, _: Any, z: Tensor) -> None:  # at once: what follows may write into z
        kept.append((conv, hot_filters(z.detach(), heat).double().mean(1), z[0, 0].numel()))

    handles = [module.get_submodule(name).register_forward_hook(keep) for name in names]
    done, whole = 0.0, 0.0
    try:
        for batch in batches_of(module, inputs, math.ceil(len(inputs) / ROWS), None):
            kept.clear()
            answers_of(module, *batch)
            before, maps = None, 0
            for conv, share, n_places in kept:
                size = conv.weight.numel() * n_places
                own = share if before is None or conv.in_channels != maps else share * before
                done, whole = done + float(own.sum()) * size, whole + len(share) * size
                before, maps = share, conv.out_channels
    finally:
        for handle in handles:
            handle.remove()
    return 1 - done / whole
