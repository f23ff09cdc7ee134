"""Scores that order layers by the number of bits they need, from several papers."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from sonde.compress._blocks import Blocks, block_calls, same_shape, state_rows
from sonde.compress._grid import rounded
from sonde.compress._layers import Weighted
from sonde.compress.fidelity import fidelity
from sonde.core.inputs import Inputs, Model
from sonde.stats import CrossMoments, CrossMomentsState, Moments, MomentsState
from sonde.stats.normal_equations import GRAM_CUT
from sonde.tap import squared_gradients
from sonde.tap.rows.padding import right_padded
from sonde.weights import Exchange, Grid, RewritePlan

LayerScore = Literal["lim", "zd", "cca", "prune", "taylor"]
Rows = Float[Tensor, "row dim"]
SMALL_SHARE = 0.1
"""Fraction of a layer's weights that ``prune`` leaves out."""


@dataclass(frozen=True, eq=False)
class LayerScores:
    """Score the layers of a model; a higher score asks for more bits.

    Parameters
    ----------
    model : Model
    layers : sequence of Weighted
    inputs : Inputs or None
        Examples; ``zd`` needs none.
    grid : Grid
        Of the smallest width.
    most : int
        Examples on which answers are compared.
    """

    model: Model
    layers: Sequence[Weighted]
    inputs: Inputs | None
    grid: Grid
    most: int

    def of(self, score: LayerScore) -> Float[Tensor, "layer"]:
        """Return the score of each layer; infinite for layers outside of the blocks."""
        scores = {
            "lim": self._moved,
            "cca": self._uncorrelated,
            "zd": self._near_weights,
            "prune": self._pruned,
            "taylor": self._rounding_loss,
        }[score]()
        return torch.tensor(scores, dtype=torch.float64)

    def _near_weights(self) -> list[float]:
        """Return the negative fraction of weights over one standard deviation above the mean."""
        scores: list[float] = []
        for layer in self.layers:
            w = layer.matrix().double()
            scores.append(-float((w > w.mean() + w.std(correction=0)).double().mean()))
        return scores

    def _moved(self) -> list[float]:
        """Return the negative mean cosine between the input and the output of a layer's block."""
        totals, n = dict[str, float](), dict[str, int]()
        for name, x, y in self._ends():
            cosine = cosine_similarity(x, y, dim=1)
            totals[name] = totals.get(name, 0.0) + float(cosine.sum())
            n[name] = n.get(name, 0) + len(x)
        return self._by_block({name: -total / n[name] for name, total in totals.items()})

    def _uncorrelated(self) -> list[float]:
        """Return the negative mean canonical correlation between a block's input and its output."""
        moments = dict[str, tuple[MomentsState, MomentsState, CrossMomentsState]]()
        for name, x, y in self._ends():
            one, other = Moments().observe(x), Moments().observe(y)
            cross = CrossMoments().observe(x, y)
            if name in moments:
                before = moments[name]
                one, other = Moments().merge(before[0], one), Moments().merge(before[1], other)
                cross = CrossMoments().merge(before[2], cross)
            moments[name] = one, other, cross
        return self._by_block({name: -_canonical(*states) for name, states in moments.items()})

    def _pruned(self) -> list[float]:
        """Return the divergence of the answers after pruning the smallest weights of each layer."""
        assert self.inputs is not None
        scores: list[float] = []
        for layer in self.layers:
            w = layer.module.weight.detach()
            n = round(SMALL_SHARE * w.numel())
            gone = w.abs().flatten().argsort(stable=True)[:n]
            values = w.flatten().index_fill(0, gone, 0.0).reshape(w.shape)
            plan = RewritePlan.of(self.model, {layer.weight: Exchange(values)}, "prune")
            changed = plan.fold(self.model)
            scores.append(fidelity(self.model, changed, self.inputs, stop=self.most).kl)
        return scores

    def _rounding_loss(self) -> list[float]:
        """Return the sum of ``gradient size x weight change`` for rounding to the fewest bits."""
        assert self.inputs is not None
        names = [layer.weight for layer in self.layers]
        state = squared_gradients(
            self.model, self.inputs, "sampled", parameters=names, progress=False
        )
        sizes = {name: square.sqrt() for name, square in state.means().items()}
        scores: list[float] = []
        for layer in self.layers:
            w = layer.matrix()
            gap = (rounded(w, self.grid, "asymmetric").matrix() - w).abs().double()
            scores.append(float((layer.matrix_of(sizes[layer.weight]) * gap).sum()))
        return scores

    def _ends(self) -> Iterator[tuple[str, Rows, Rows]]:
        """Yield the input and output states of each block that keeps their shape, as rows."""
        assert self.inputs is not None
        blocks = Blocks.of("BitAllocation", self.model, self.inputs)
        for batch in map(right_padded, self.inputs.batches(0, len(self.inputs))):
            calls = block_calls("BitAllocation", self.model, blocks, batch)
            for i, block in enumerate(blocks.modules):
                if not same_shape([calls[block]]):
                    continue
                x, y = (state_rows(v, batch) for v in (calls[block].x, calls[block].y))
                both = torch.isfinite(x).all(1) & torch.isfinite(y).all(1)
                if bool(both.any()):
                    yield f"{blocks.name}.{i}", x[both], y[both]

    def _by_block(self, scores: Mapping[str, float]) -> list[float]:
        """Return the score of the block that holds each layer."""
        values: list[float] = []
        for layer in self.layers:
            above = [name for name in scores if layer.name.startswith(f"{name}.")]
            values.append(scores[above[0]] if above else math.inf)
        return values


def _canonical(x: MomentsState, y: MomentsState, cross: CrossMomentsState) -> float:
    """Return the mean canonical correlation of two sets of units."""
    left, right = (_whitening(state.covariance) for state in (x, y))
    correlations = torch.linalg.svdvals(left.T @ cross.covariance @ right)
    return float(correlations.mean()) if correlations.numel() else 0.0


def _whitening(covariance: Float[Tensor, "dim dim"]) -> Float[Tensor, "dim rank"]:
    """Return whitened directions: uncorrelated, of variance 1, without constant directions."""
    square = covariance.diagonal()
    scale = torch.where(square > 0, square, 1.0).rsqrt()
    values, vectors = torch.linalg.eigh(covariance * scale[:, None] * scale)
    kept = values > GRAM_CUT * values[-1]
    return scale[:, None] * vectors[:, kept] * values[kept].rsqrt()
