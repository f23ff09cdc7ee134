"""Make layers narrower by removing channels, neurons and heads; the next layer compensates.

The model becomes smaller and faster on any processor, without a kernel. For single weights at the
same shapes, ``PruneWeights`` and ``SparseGPT``; for whole blocks, ``DropBlocks``.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.compress._coupled import (
    IN,
    CoupledSet,
    axis_of,
    columns_of,
    coupled_sets,
    cut_changes,
)
from sonde.compress._grid import method_of
from sonde.compress._layers import Weighted
from sonde.compress.gptq import loss_of
from sonde.compress.grams import LayerGrams, grams_for, layers_of_weight
from sonde.core.errors import InputError, near
from sonde.core.inputs import Inputs, Model
from sonde.core.ranges import check_ranges
from sonde.core.renaming import renamed
from sonde.stats import MomentsState
from sonde.weights import Examples, Rewrite, RewritePlan
from sonde.weights._kinds import kind_of
from sonde.weights.change import rounded_to_half
from sonde.weights.own_config import with_own_config


@renamed(remove="share")
@final
@dataclass(frozen=True)
class PruneChannels(Rewrite):
    """Remove the channels that matter least to the layers after them.

    Trials find which channels must go together, as a unit: channels of all layers that write into
    one sum, the query, key and value features of a head, the batch norm behind a convolution, and
    the inputs of all layers that read these. With ``C`` the covariance of a reader's inputs (second
    moment if the reader has no bias), ``reconstruction`` takes away one unit ``U`` after the other:
    the unit with the smallest rise ``tr(W_U ([C^-1]_UU)^-1 W_U^T)`` of the readers' output errors,
    while the inputs that are left compensate. ``power`` scores by ``sum_U C_jj |W_j|^2``, ``norm``
    by the squares of all weights of a unit. The readers are then fitted to the inputs that are
    left, ``W' = W C_:S (C_SS + damp)^-1``; the mean of the lost inputs goes into their biases.

    Range        the same share of the units of each set: channels of a stream, neurons of an MLP,
                 heads of an attention; at least one unit stays.
    Cost         one pass over the data, some forwards of one example; O(dim^3) for each set.
    Assumes      inputs of the kind that the model will meet; all layers are fitted at the inputs of
                 the whole model.
    Differs      from the paper: units are taken away one by one with exact updates, not by a lasso;
                 nothing is trained afterwards.

    Parameters
    ----------
    remove : float, default=0.5
        Fraction of the units of each set that is removed, in [0, 1), rounded half to even; 0
        changes nothing.
    score : {"reconstruction", "power", "norm"}, default="reconstruction"
        How a unit's importance is computed: the rise of the readers' output error
        (``reconstruction``), its contribution to their outputs (``power``), or its squared weights
        (``norm``).
    refit : bool, default=True
        Fit the readers to the inputs that are left.
    round_to : int, default=1
        The number of units that stay is a multiple of this, if the set has as many.
    damp : float, default=1e-4
        Added to the diagonal of ``C``, as a share of its mean.
    half : bool, default=True
        Round the fitted weights to float16 (bfloat16 if one is too large), so that files are
        smaller.
    layers : sequence of str, optional
        Patterns of layers' names: only sets with a channel of a named layer lose units. All by
        default.

    References
    ----------
    he2017channel
    """

    remove: float = 0.5
    score: Literal["reconstruction", "power", "norm"] = "reconstruction"
    refit: bool = True
    round_to: int = 1
    damp: float = 1e-4
    half: bool = True
    layers: Sequence[str] | None = None
    paper: ClassVar[str] = "he2017channel"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"remove": 0.3, "score": "power", "round_to": 2, "half": False},
        {"score": "norm", "refit": False},
    )

    def __post_init__(self) -> None:
        check_ranges(self, remove="[0, 1)", round_to=">= 1", damp="> 0")

    def reads(self) -> dict[str, Examples]:
        """Read examples, which also show the layers that read each channel."""
        return {"calibration": Examples()}

    def planned(self, model: Model, calibration: Inputs) -> RewritePlan:
        """Return the narrower layers.

        Raises
        ------
        InputError
            If no channel can go, with the reason, or a pattern names none that can.
        """
        word = method_of("PruneChannels", asdict(self))
        if self.remove == 0:
            return RewritePlan.of(model, {}, word)
        sets, refused = coupled_sets(model, calibration)
        chosen = self._chosen(sets, refused)
        names = tuple(dict.fromkeys(name for one in chosen for name in _readers(model, one)))
        grams = grams_for("PruneChannels", model, calibration, names) if names else None
        readers = {name: _Reader.of(model, name, grams, self.damp) for name in names}
        cuts, gone = list[tuple[CoupledSet, list[int]]](), defaultdict[str, list[int]](list)
        counts: dict[int, int] = {}
        for one in chosen:
            fits = {name: columns_of(one, readers[name].layer) for name in _readers(model, one)}
            units = self._gone(model, one, {readers[name]: own for name, own in fits.items()})
            kept = [i for i in range(len(one)) if i not in units]
            cuts.append((one, kept))
            for name, columns in fits.items():
                gone[name] += [i for unit in units for i in columns[unit]]
            parts = [len(places) for places in one.units[0].values()]
            counts |= {len(one) * (n // min(parts)): len(kept) * (n // min(parts)) for n in parts}
        loss, weights = 0.0, dict[str, Tensor]()
        for name, columns in gone.items():
            new, lost = readers[name].fitted(columns, self.refit, self.half)
            loss, weights = loss + lost, weights | new
        changes, forms = cut_changes(model.module, cuts, weights)
        named = model.module.state_dict()
        less = sum(named[name].numel() - change.of(named[name]).numel()
                   for name, change in changes.items())  # fmt: skip
        figures = {
            "loss": loss,
            "sets": float(len(chosen)),
            "units": float(sum(len(one) - len(kept) for one, kept in cuts)),
            "of_units": float(sum(len(one) for one, _ in cuts)),
            "parameters": float(less),
            "refused": float(len(refused)),
        }
        plan = RewritePlan.shaped(model, changes, word, figures, forms=forms)
        return with_own_config(model, plan, counts)

    def _chosen(self, sets: Sequence[CoupledSet], refused: dict[str, str]) -> list[CoupledSet]:
        """Return the sets that patterns match."""
        reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
        chosen = list(sets)
        for pattern in self.layers or ():
            names = [name for one in sets for name in one.layers]
            if not any(fnmatchcase(name, pattern) for name in names):
                raise InputError(
                    "PruneChannels.plan: no layer with removable channels matches "
                    f"{pattern!r}.{near(pattern, names)}"
                    f"{f' Not removable: {reasons}.' if reasons else ''}"
                )
        if self.layers is not None:
            chosen = [
                one
                for one in sets
                if any(fnmatchcase(name, p) for name in one.layers for p in self.layers)
            ]
        if not chosen:
            why = reasons or "each channel reaches the model's output, or a norm mixes all of them"
            raise InputError(
                "PruneChannels.plan: expected channels that other layers read, got none that "
                f"can be removed ({why}). Use a method that changes single layers."
            )
        return chosen

    def _gone(
        self, model: Model, one: CoupledSet, readers: Mapping["_Reader", list[list[int]]]
    ) -> list[int]:
        """Return the removed units."""
        n_kept = len(one) - round(self.remove * len(one))
        n_kept = min(len(one), max(1, -(-n_kept // self.round_to)) * self.round_to)
        n_gone = len(one) - n_kept
        if self.score == "norm" or not readers:
            scores = _norms(model, one)
        elif self.score == "power":
            scores = torch.stack([r.powers(own) for r, own in readers.items()]).sum(0)
        else:
            steps, gone = [_Steps(r, own) for r, own in readers.items()], list[int]()
            for _ in range(n_gone):
                gone.append(int(torch.stack([step.costs() for step in steps]).sum(0).argmin()))
                for step in steps:
                    step.take(gone[-1])
            return sorted(gone)
        return sorted(scores.argsort(stable=True)[:n_gone].tolist())


@dataclass(frozen=True, eq=False)
class _Reader:
    """A layer that reads channels, and the moments of its inputs.

    Parameters
    ----------
    layer : Weighted
    moments : MomentsState
    h : Float[Tensor, "in in"]
        Covariance, or second moment if the layer has no bias; damped.
    """

    layer: Weighted
    moments: MomentsState
    h: Float[Tensor, "in in"]

    @classmethod
    def of(cls, model: Model, name: str, grams: LayerGrams | None, damp: float) -> "_Reader":
        layer = Weighted(name, model.module.get_submodule(name))
        assert grams is not None  # taken where there are readers
        moments = grams.of_layers(layers_of_weight(model.module, name))
        own = moments.second_moment if layer.module.bias is None else moments.covariance
        h = own.to(layer.module.weight.device, copy=True)
        mean = float(h.diagonal().mean())
        h.diagonal().add_(damp * (mean if mean > 0 else 1.0))
        return cls(layer, moments, h)

    def powers(self, columns: list[list[int]]) -> Float[Tensor, "unit"]:
        """Return the power that each unit alone adds to outputs."""
        each = self.h.diagonal() * self.layer.matrix().square().sum(0)
        return each[torch.tensor(columns)].sum(1).cpu()

    def fitted(
        self, gone: Sequence[int], refit: bool, half: bool
    ) -> tuple[dict[str, Tensor], float]:
        """Return the fitted weight and bias with some inputs at 0, and the output error."""
        w, bias, name = self.layer.matrix(), self.layer.module.bias, self.layer.weight
        left = torch.ones(w.shape[1], dtype=torch.bool)
        left[torch.tensor(gone, dtype=torch.long)] = False
        new, tensors = torch.zeros_like(w), dict[str, Tensor]()
        new[:, left] = w[:, left]
        if refit:
            new[:, left] = torch.linalg.solve(self.h[left][:, left], self.h[left] @ w.T).T
            new = rounded_to_half(new) if half else new
            tensors[name] = self.layer.tensor(new)
        error, seen = w - new, self.moments.second_moment
        if refit and bias is not None:
            moved = bias.detach().double() + error @ self.moments.mean.to(w)
            moved = rounded_to_half(moved) if half else moved
            tensors[name.removesuffix("weight") + "bias"] = moved.to(bias.dtype)
            seen = self.moments.covariance
        return tensors, float(loss_of(error, seen.to(w)).sum())


class _Steps:
    """Removal of a layer's input units one by one, compensated by the remaining inputs."""

    def __init__(self, reader: _Reader, columns: list[list[int]]) -> None:
        self.w, self.inverse = reader.layer.matrix(), torch.linalg.inv(reader.h)
        self.columns = torch.tensor(columns, device=reader.h.device)
        self.gone = torch.zeros(len(columns), dtype=torch.bool)

    def costs(self) -> Float[Tensor, "unit"]:
        """Return the increase of the output error without each unit; infinite for removed units."""
        costs = torch.full(self.gone.shape, torch.inf, dtype=torch.float64)
        index = self.columns[~self.gone]
        blocks = self.inverse[index[:, :, None], index[:, None, :]]
        parts = self.w.T[index]  # (unit, column, out)
        costs[~self.gone] = (torch.linalg.solve(blocks, parts) * parts).sum((1, 2)).cpu()
        return costs

    def take(self, unit: int) -> None:
        """Remove a unit."""
        own = self.columns[unit]
        ways = torch.linalg.solve(self.inverse[own][:, own], self.inverse[own])
        self.w = self.w - self.w[:, own] @ ways
        self.inverse = self.inverse - self.inverse[:, own] @ ways
        self.gone[unit] = True


def _readers(model: Model, one: CoupledSet) -> list[str]:
    """Return the layers of a set that read all their inputs at once."""
    parts = {name: model.module.get_submodule(name) for name in one.sides(IN)}
    return [name for name, part in parts.items() if getattr(part, "groups", 1) == 1]


def _norms(model: Model, one: CoupledSet) -> Float[Tensor, "unit"]:
    """Return the sum of squared weights of each unit."""
    scores = torch.zeros(len(one), dtype=torch.float64)
    for name, side in one.units[0]:
        part: Any = model.module.get_submodule(name)
        if kind_of(part) is None or (side == IN and getattr(part, "groups", 1) > 1):
            continue
        each = part.weight.detach().double().square().transpose(0, axis_of(part, side))
        each = each.flatten(1).sum(1).cpu()
        for i, unit in enumerate(one.units):
            scores[i] += each[list(unit[name, side])].sum()
    return scores
