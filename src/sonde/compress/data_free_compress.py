"""Prune and round channels without data, and compensate by similar channels.

For models whose data are not at hand. With examples, ``PruneChannels`` and ``GPTQ`` lose less.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
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
from sonde.weights import (
    Change,
    Examples,
    Exchange,
    Grid,
    Quantised,
    Resized,
    Rewrite,
    RewritePlan,
)
from sonde.weights._kinds import kind_of
from sonde.weights.own_config import with_own_config

REMOVED = 0.3
"""Fraction of the channels that is removed if neither a fraction nor bits are given."""


@renamed(remove="share")
@final
@dataclass(frozen=True)
class DataFreeCompress(Rewrite):
    """Remove and round channels, and let the next layers rebuild them from other channels.

    Let ``a_j`` be the weights and the bias that make channel ``j``, batch norm included, and
    ``b_j`` what is left of them: rounded weights, or 0 for a removed channel. The loss
    ``a_j - b_j`` is rebuilt as ``sum_i c_ji b_i`` from the channels that stay, with ``c`` by ridge
    regression on the weights alone. The next layers' columns become ``W_i + sum_j c_ji W_j``, and
    are then rounded in turn.

    Range        as ``PruneChannels``, or as ``RTN`` if ``bits`` is given.
    Cost         some forwards of one example, whose values do not matter; O(channels^3) a layer.
    Assumes      inputs of a layer that are uncorrelated and of variance 1. Behind a ReLU the
                 rebuilt channel is exact only where the channels agree in sign.
    Differs      from the paper: only channels of a single layer, which no sum joins with others'
                 and no gate multiplies, are left out or made up for.

    Parameters
    ----------
    remove : float, optional
        Fraction of the channels that is removed, in [0, 1), rounded half to even: the channels with
        the smallest sums of absolute weights. By default 0.3, or 0 if ``bits`` is given.
    bits : int, optional
        Bits of a weight, 2 to 8, by default unrounded. With ``remove``, both are made up for at
        once.
    group : int, default=32
        Entries of a row that share a scale.
    refit : bool, default=True
        Let the next layers make up for what is lost.
    ridge : float, default=0.1
        Ridge penalty of the regression, relative to the mean square of a channel's weights.
    layers : sequence of str, optional
        Patterns of the names of layers that lose channels and are rounded. By default all layers
        lose channels, and the linear ones are rounded.

    References
    ----------
    bai2023udfc
    """

    remove: float | None = None
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
        {"remove": 0.3, "bits": 4, "layers": ("*",)},
    )

    def __post_init__(self) -> None:
        check_ranges(self, remove="[0, 1)")
        check_grid("DataFreeCompress", self.bits, self.group)
        check_ranges(self, ridge="> 0")

    def reads(self) -> dict[str, Examples]:
        """Read an example, which shows the layers that read each channel."""
        return {"calibration": Examples()}

    def planned(self, model: Model, calibration: Inputs) -> RewritePlan:
        """Return the layers, narrower or rounded or both.

        Raises
        ------
        InputError
            If no channel can be left out, or a pattern names none.
        """
        word = method_of("DataFreeCompress", asdict(self))
        if self.bits is None and self._removed == 0:
            return RewritePlan.of(model, {}, word)
        makers, layers = _makers(model, calibration), list[Weighted]()
        narrower = self._narrower(makers) if self._removed else set[str]()
        if self.bits is not None:
            layers = weighted_layers("DataFreeCompress", model, self.layers)
        names = {layer.name for layer in layers}
        work, cuts = _Matrices(model, self.bits, self.group), list[tuple[CoupledSet, list[int]]]()
        for maker in makers:
            name, kept = maker.layer.name, [*range(len(maker.units))]
            if name in narrower:
                kept = self._kept(maker)
                cuts.append((maker.units, kept))
                work.remove(maker.units, kept)
            if self.refit and name in narrower | names:
                rows = maker.rows(work.whole(name))
                new = maker.rows(work.rounded(name)) if name in names else rows
                maker.pass_on(model, self._ways(rows, new, kept), work.now)
        changes, forms = cut_changes(model.module, cuts, work.tensors())
        for name, w in work.tensors().items():
            if name not in changes:
                changes[name] = Exchange(w)
        for layer in layers:
            changes[layer.weight] = work.packed(layer)
            if layer.is_linear and work.is_cut(layer.name):
                form = forms.setdefault(layer.name, {"shapes": {}})
                form["shapes"]["weight"] = list(layer.stored(work.cut(layer.name)).shape)
        gone = sum(len(units) - len(kept) for units, kept in cuts)
        figures = {"units": float(gone)} if cuts else {}
        plan = RewritePlan.shaped(model, changes, word, figures, forms=forms)
        return with_own_config(model, plan, {len(units): len(kept) for units, kept in cuts})

    @property
    def _removed(self) -> float:
        """Fraction of the channels that is removed."""
        if self.remove is None:
            return REMOVED if self.bits is None else 0.0
        return self.remove

    def _narrower(self, makers: "list[_Maker]") -> set[str]:
        """Return the names of the layers that lose channels."""
        names = [maker.layer.name for maker in makers]
        wanted = self.layers or ("*",)
        chosen = {name for name in names if any(fnmatchcase(name, p) for p in wanted)}
        if not chosen:
            raise InputError(
                "DataFreeCompress.plan: expected layers whose channels no other layer shares, "
                f"got none that matches {', '.join(wanted)}; found "
                f"{', '.join(names) or 'none'}. Use PruneChannels."
            )
        return chosen

    def _kept(self, maker: "_Maker") -> list[int]:
        """Return the units that stay."""
        size = maker.rows(maker.layer.matrix())[:, :-1].abs().sum(1)
        n_gone = min(round(self._removed * len(size)), len(size) - 1)
        return size.argsort(stable=True)[n_gone:].sort().values.tolist()

    def _ways(
        self, old: Float[Tensor, "unit in1"], new: Float[Tensor, "unit in1"], kept: list[int]
    ) -> Float[Tensor, "unit unit"]:
        """Return each unit as a sum of the new units that stay."""
        ways = torch.zeros(len(old), len(old)).to(old)
        ways[kept, kept] = 1.0
        b = new[kept]
        free = self.ridge * b.square().sum() / len(b) * torch.eye(len(b)).to(b)
        lost = old - ways @ new
        ways[:, kept] += torch.linalg.solve(b @ b.T + free, b @ lost.T).T
        return ways


@dataclass(frozen=True, eq=False)
class _Matrices:
    """Matrices of the layers, of full size until all channels are removed.

    Parameters
    ----------
    model : Model
    bits : int or None
    group : int
    now : dict of str to Tensor
        Matrices that differ from the model's, by layer.
    gone : dict of (str, str) to set of int
        Rows (``out``) and columns (``in``) that are removed, by layer.
    """

    model: Model
    bits: int | None
    group: int
    now: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    gone: dict[tuple[str, str], set[int]] = field(default_factory=dict[tuple[str, str], set[int]])

    def layer(self, name: str) -> Weighted:
        return Weighted(name, self.model.module.get_submodule(name))

    def whole(self, name: str) -> Float[Tensor, "out in"]:
        return self.now.get(name, self.layer(name).matrix())

    def tensors(self) -> dict[str, Tensor]:
        """Return the matrices that differ as tensors, by name."""
        return {f"{name}.weight": self.layer(name).tensor(w) for name, w in self.now.items()}

    def remove(self, units: CoupledSet, kept: list[int]) -> None:
        """Record the rows and columns of the units that go."""
        lost = sorted({*range(len(units))} - {*kept})
        for name in units.sides(OUT):
            self.gone.setdefault((name, OUT), set()).update(units.places(lost, name, OUT))
        for name in units.sides(IN):
            columns = columns_of(units, self.layer(name))
            self.gone.setdefault((name, IN), set()).update(i for u in lost for i in columns[u])

    def is_cut(self, name: str) -> bool:
        return bool({(name, OUT), (name, IN)} & self.gone.keys())

    def cut(self, name: str, sides: tuple[str, ...] = (OUT, IN)) -> Float[Tensor, "out in"]:
        """Return the matrix without the rows, or columns, that are removed."""
        w = self.whole(name)
        for axis, side in enumerate((OUT, IN)):
            if side in sides:
                gone = self.gone.get((name, side), set[int]())
                w = w.index_select(
                    axis,
                    torch.tensor([i for i in range(w.shape[axis]) if i not in gone]).to(w.device),
                )
        return w

    def rounded(self, name: str) -> Float[Tensor, "out in"]:
        """Return the whole matrix with its columns that stay rounded, and zeros elsewhere."""
        columns = self.cut(name, (IN,))
        new = torch.zeros_like(self.whole(name))
        gone = self.gone.get((name, IN), set[int]())
        new[:, [i for i in range(new.shape[1]) if i not in gone]] = self._codes(columns).matrix()
        return new

    def packed(self, layer: Weighted) -> Change:
        """Return the change of a layer's weight to rounded values of the new shape."""
        codes = self._codes(self.cut(layer.name), layer)
        if layer.is_linear or not self.is_cut(layer.name):
            return codes
        return Resized(layer.stored(codes.matrix()))

    def _codes(self, w: Float[Tensor, "out in"], layer: Weighted | None = None) -> Quantised:
        assert self.bits is not None
        return rounded(w, Grid.over(self.bits, self.group, w.shape[1]), "asymmetric", layer=layer)


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
