"""Prune or round channels without data, and compensate by similar channels.

For models whose data are not at hand. With examples, ``PruneChannels`` and ``GPTQ`` lose less.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.compress._blocks import placed_call
from sonde.compress._coupled import (
    IN,
    OUT,
    CoupledSet,
    columns_of,
    coupled_sets,
    cut_changes,
)
from sonde.compress._grid import check_grid, method_of, rounded
from sonde.compress._layers import Weighted, weighted_layers
from sonde.core.errors import InputError
from sonde.core.inputs import Inputs, Model
from sonde.core.ranges import check_ranges
from sonde.core.renaming import renamed
from sonde.tap import calls_of
from sonde.weights import Change, Examples, Exchange, Grid, Rewrite, RewritePlan
from sonde.weights._kinds import kind_of
from sonde.weights.own_config import with_own_config


@renamed(remove="share")
@final
@dataclass(frozen=True)
class DataFreeCompress(Rewrite):
    """Remove or round channels, and let the next layers rebuild them from other channels.

    Let ``a_j`` be the weights and the bias that make channel ``j``, batch norm included. What is
    lost of a channel is rebuilt as ``sum_i c_ji a_i`` from the channels that stay (or from all
    rounded ones), with ``c`` by ridge regression on the weights alone. The next layers' columns
    become ``W_i + sum_j c_ji W_j`` (or ``W c``).

    Range        as ``PruneChannels``, or as ``RTN`` if ``bits`` is given.
    Cost         some forwards of one example, whose values do not matter; O(channels^3) a layer.
    Assumes      inputs of a layer that are uncorrelated and of variance 1. Behind a ReLU the
                 rebuilt channel is exact only where the channels agree in sign.
    Differs      from the paper: channels are removed or weights are rounded, not both at once; only
                 channels of a single layer, which no sum joins with others' and no gate multiplies,
                 are left out or made up for.

    Parameters
    ----------
    remove : float, default=0.3
        Fraction of the channels that is removed, in [0, 1), rounded half to even: the channels with
        the smallest sums of absolute weights. 0 changes nothing.
    bits : int, optional
        Bits of a weight, 2 to 8: weights are rounded, and no channel is left out.
    group : int, default=32
        Entries of a row that share a scale.
    refit : bool, default=True
        Let the next layers make up for what is lost.
    ridge : float, default=0.1
        Ridge penalty of the regression, relative to the mean square of a channel's weights.
    layers : sequence of str, optional
        Patterns of layers' names: those that lose channels, all by default; or those that are
        rounded, all linear ones by default.

    References
    ----------
    bai2023udfc
    """

    remove: float = 0.3
    bits: int | None = None
    group: int = 32
    refit: bool = True
    ridge: float = 0.1
    layers: Sequence[str] | None = None
    paper: ClassVar[str] = "bai2023udfc"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"bits": 3, "group": 5, "layers": ("*",)},
        {"remove": 0.5, "refit": False},
    )

    def __post_init__(self) -> None:
        check_ranges(self, remove="[0, 1)")
        check_grid("DataFreeCompress", self.bits, self.group)
        check_ranges(self, ridge="> 0")

    def reads(self) -> dict[str, Examples]:
        """Read an example, which shows the layers that read each channel."""
        return {"calibration": Examples()}

    def planned(self, model: Model, calibration: Inputs) -> RewritePlan:
        """Return the narrower or the rounded layers.

        Raises
        ------
        InputError
            If no channel can be left out, or a pattern names none.
        """
        word = method_of("DataFreeCompress", asdict(self))
        if self.bits is None and self.remove == 0:
            return RewritePlan.of(model, {}, word)
        makers = _makers(model, calibration)
        return (self._pruned if self.bits is None else self._rounded)(model, makers, word)

    def _pruned(self, model: Model, makers: "list[_Maker]", word: str) -> RewritePlan:
        names = [maker.layer.name for maker in makers]
        wanted = self.layers or ("*",)
        makers = [m for m in makers if any(fnmatchcase(m.layer.name, p) for p in wanted)]
        if not makers:
            raise InputError(
                "DataFreeCompress.plan: expected layers whose channels no other layer shares, "
                f"got none that matches {', '.join(wanted)}; found "
                f"{', '.join(names) or 'none'}. Use PruneChannels."
            )
        cuts, now = list[tuple[CoupledSet, list[int]]](), dict[str, Tensor]()
        gone = 0
        for maker in makers:
            rows, n = maker.rows(maker.layer.matrix()), len(maker.units)
            n_gone = min(round(self.remove * n), n - 1)
            lost = rows[:, :-1].abs().sum(1).argsort(stable=True)[:n_gone].sort().values
            kept = [i for i in range(n) if i not in lost.tolist()]
            if self.refit:
                a = rows[kept]
                free = self.ridge * a.square().sum() / len(kept)
                inner = a @ a.T + free * torch.eye(len(kept)).to(a)
                ways = torch.eye(n).to(a)
                ways[lost[:, None], torch.tensor(kept)] = torch.linalg.solve(
                    inner, a @ rows[lost].T
                ).T
                maker.pass_on(model, ways, now)
            cuts.append((maker.units, kept))
            gone += n_gone
        weights = {f"{n}.weight": _tensor(model, n, x) for n, x in now.items()}
        changes, forms = cut_changes(model.module, cuts, weights)
        plan = RewritePlan.shaped(model, changes, word, {"units": float(gone)}, forms=forms)
        counts = {len(one): len(kept) for one, kept in cuts}
        return with_own_config(model, plan, counts)

    def _rounded(self, model: Model, makers: "list[_Maker]", word: str) -> RewritePlan:
        assert self.bits is not None
        bits, now = self.bits, dict[str, Tensor]()
        layers = {one.name: one for one in weighted_layers("DataFreeCompress", model, self.layers)}
        changes = dict[str, Change]()

        def over(w: Tensor) -> Grid:
            return Grid.over(bits, self.group, w.shape[1])

        for maker in makers:
            layer = maker.layer
            if layer.name in layers and self.refit:
                w = now.get(layer.name, layer.matrix())
                changes[layer.weight] = new = rounded(w, over(w), "asymmetric", layer=layer)
                a, b = maker.rows(w), maker.rows(new.matrix().to(w))
                free = self.ridge * b.square().sum() / len(b) * torch.eye(len(b)).to(b)
                maker.pass_on(model, torch.linalg.solve(b @ b.T + free, b @ a.T + free).T, now)
        for name, w in now.items():
            if name not in layers:
                changes[f"{name}.weight"] = Exchange(_tensor(model, name, w))
        for name, layer in layers.items():
            if layer.weight not in changes:
                w = now.get(name, layer.matrix())
                changes[layer.weight] = rounded(w, over(w), "asymmetric", layer=layer)
        return RewritePlan.of(model, changes, word)


@dataclass(frozen=True, eq=False)
class _Maker:
    """A layer with independent channels, and the units that hold these channels.

    Parameters
    ----------
    layer : Weighted
    units : CoupledSet
    norm : module or None
        Batch norm of the channels.
    """

    layer: Weighted
    units: CoupledSet
    norm: Any

    @classmethod
    def of(cls, model: Model, units: CoupledSet) -> "_Maker | None":
        """Return the layer of a set of units, or None if units span several layers or are heads."""
        first, parts = units.units[0], dict[str, nn.Module]()
        for name in units.layers:
            parts[name] = model.module.get_submodule(name)
        producers = [name for name in units.sides(OUT) if kind_of(parts[name]) is not None]
        norms = [name for name in units.sides(OUT) if isinstance(parts[name], _NORMS)]
        alone = len(producers) == 1 and kind_of(parts[producers[0]]) != "rows" and len(norms) < 2
        if not alone or len(first[producers[0], OUT]) > 1:
            return None
        if any(getattr(part, "groups", 1) > 1 for part in parts.values()):
            return None
        layer = Weighted(producers[0], parts[producers[0]])
        return cls(layer, units, parts[norms[0]] if norms else None)

    def rows(self, matrix: Float[Tensor, "out in"]) -> Float[Tensor, "unit in1"]:
        """Return the weights and bias of each unit, with a following batch norm folded in."""
        bias = self.layer.module.bias
        bias = matrix.new_zeros(len(matrix)) if bias is None else bias.detach().to(matrix)
        places = torch.tensor([own[self.layer.name, OUT][0] for own in self.units.units])
        rows, bias = matrix[places], bias[places]
        if self.norm is not None:
            norm = self.norm
            scale = (norm.running_var.double() + norm.eps).rsqrt()
            shift = -norm.running_mean.double() * scale
            if norm.affine:
                gain = norm.weight.detach().double()
                scale, shift = scale * gain, shift * gain + norm.bias.detach().double()
            rows, bias = rows * scale[places, None], bias * scale[places] + shift[places]
        return torch.cat([rows, bias[:, None]], 1)

    def pass_on(
        self, model: Model, ways: Float[Tensor, "unit unit"], now: dict[str, Tensor]
    ) -> None:
        """Replace readers' columns ``W`` by ``W ways``; row ``u`` of ``ways`` rebuilds unit u."""
        for name in self.units.sides(IN):
            layer = Weighted(name, model.module.get_submodule(name))
            w = now.get(name, layer.matrix()).clone()
            columns = torch.tensor(columns_of(self.units, layer))  # (unit, place of a map)
            w[:, columns] = torch.einsum("oua,uv->ova", w[:, columns], ways)
            now[name] = w


_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def _makers(model: Model, inputs: Inputs) -> list[_Maker]:
    """Return the layers with independent channels, in the order of their calls."""
    every = [_Maker.of(model, units) for units in coupled_sets(model, inputs)[0]]
    makers = {maker.layer.module: maker for maker in every if maker is not None}
    args, kwargs = placed_call(model, next(iter(inputs.batches(0, 1))))
    calls = calls_of(model.module, list(makers), args, kwargs) if makers else []
    return [makers[part] for part in dict.fromkeys(part for part, _ in calls)]


def _tensor(model: Model, name: str, matrix: Float[Tensor, "out in"]) -> Float[Tensor, "..."]:
    return Weighted(name, model.module.get_submodule(name)).tensor(matrix)
