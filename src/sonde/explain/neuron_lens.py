"""Tokens that a unit writes, computed from the weights alone.

The lens multiplies the vectors of a layer's units by the unembedding. It says what a unit would
write if nothing came after it; ``edit.Clamp`` shows what it does write.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import pyarrow as pa  # pyright: ignore[reportMissingTypeStubs]
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sonde.core.chart import Chart, marks
from sonde.core.errors import InputError, ShapeError
from sonde.core.explainer import Explainer
from sonde.core.inputs import Model
from sonde.core.ranges import check_ranges
from sonde.core.result import Result
from sonde.tap.decoding.layers import ModelBlocks
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.model.sites import Pattern, resolve
from sonde.tap.streams.weight_stream import matrix_of

TILE = 1 << 24
"""Most scores that are held at a time."""


@final
@dataclass(frozen=True, kw_only=True)
class NeuronLensResult(Result):
    """``value`` is each unit's largest token score, in standard deviations of the unit's scores.

    ``top`` and ``bottom`` are the tokens with the highest and lowest scores, the most extreme
    first; ``top_score`` and ``bottom_score`` their scores. ``kurtosis`` is the excess kurtosis of
    each unit's scores: high if a unit is about few tokens. ``words`` are the texts of ``top`` and
    then of ``bottom``, unit by unit; empty if the model came without a tokenizer.
    """

    top: Int[Tensor, "unit token"]
    top_score: Float[Tensor, "unit token"]
    bottom: Int[Tensor, "unit token"]
    bottom_score: Float[Tensor, "unit token"]
    kurtosis: Float[Tensor, "unit"]
    words: tuple[str, ...] = ()

    def texts(self) -> tuple[list[list[str]], list[list[str]]] | None:
        """Return the texts of each unit's top and bottom tokens, or None without a tokenizer."""
        if not self.words:
            return None
        n, half = self.top.shape[1], self.top.numel()
        rows = [list(self.words[i : i + n]) for i in range(0, 2 * half, n)]
        return rows[: len(self.top)], rows[len(self.top) :]

    def table(self) -> pa.Table:  # pyright: ignore[reportUnknownMemberType, reportUnknownParameterType]
        """Return a table with each unit's z-score, kurtosis, and top and bottom tokens.

        The tokens are texts if the model came with a tokenizer, else numbers.
        """
        top, bottom = self.texts() or (self.top.tolist(), self.bottom.tolist())
        columns: dict[str, Any] = {
            "unit": list(range(len(self.top))),
            "z": torch.as_tensor(self.value).tolist(),
            "kurtosis": self.kurtosis.tolist(),
            "top": top,
            "bottom": bottom,
        }
        return pa.table(columns)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

    def chart(self) -> Chart:
        """Return each unit's z-score against the kurtosis of its scores."""
        rows = self.table().select(["unit", "z", "kurtosis"]).to_pylist()  # pyright: ignore[reportUnknownMemberType]
        return marks(self.title, rows, "kurtosis", "z")

    def agreement(self, other: "NeuronLensResult") -> float:
        """Return the fraction of units that have the same top token in another model.

        Raises
        ------
        ShapeError
            If the other layer has other units.
        """
        self._check(other)
        return float((self.top[:, 0] == other.top[:, 0]).double().mean())

    def overlap(self, other: "NeuronLensResult", p: float = 0.9) -> Float[Tensor, "unit"]:
        """Return each unit's rank-biased overlap of top tokens with another model.

        ``(1 - p) sum_d p^(d-1) |A_d and B_d| / d`` over the tokens kept, divided by what equal
        lists give: 1 = the same tokens in the same order, 0 = none in common.
        """
        self._check(other)
        depth = min(self.top.shape[1], other.top.shape[1])
        same = self.top[:, :depth, None] == other.top[:, None, :depth]
        total = torch.zeros(len(self.top), dtype=torch.float64)
        weight = [p**d for d in range(depth)]
        for d in range(1, depth + 1):
            total += weight[d - 1] * same[:, :d, :d].sum((1, 2)).double() / d
        return total / sum(weight)

    def _check(self, other: "NeuronLensResult") -> None:
        if len(self.top) != len(other.top):
            raise ShapeError(
                f"NeuronLensResult: expected layers of one width, got {len(self.top)} and "
                f"{len(other.top)} units. Compare the same layer of two models."
            )


@final
@dataclass(frozen=True)
class NeuronLens(Explainer):
    """Scores of every token for every unit of a layer: the unembedding times the unit's vector.

    The vector is a row of a layer that reads the residual stream (the paper's up-projection), or a
    column of one that writes into it (the down-projection). With ``gain`` it passes the final norm
    as a small addition does: mean removed where the norm removes it, times the norm's gain.

    Range        z in standard deviations of a unit's scores; tokens by score, ties by number.
    Cost         no data; tokens x dim x units products, a tile at a time.
    Assumes      a causal model whose final norm and head alone give the logits.
    Differs      the paper counts top tokens; scores, bottom tokens and kurtosis are ours.

    Parameters
    ----------
    n : int, default=10
        Tokens that are kept for each unit.
    gain : bool, default=True
        Whether vectors pass the final norm.
    side : {"auto", "reads", "writes"}, default="auto"
        Whether a unit is an output of the layer (it reads the stream) or an input (it writes).
        ``auto`` tells from the shape; a square layer needs one of the other two.

    References
    ----------
    lmhead2024neurons
    """

    n: int = 10
    gain: bool = True
    side: Literal["auto", "reads", "writes"] = "auto"
    paper: ClassVar[str] = "lmhead2024neurons"

    def __post_init__(self) -> None:
        check_ranges(self, n=">= 1", side=("auto", "reads", "writes"))

    def explain(
        self, model: Model | nn.Module, inputs: None = None, *, site: Pattern
    ) -> NeuronLensResult:
        """Return the tokens of each unit of a linear layer.

        Parameters
        ----------
        model : Model or nn.Module
        inputs : None
            Nothing is run: weights are read alone.
        site : pattern
            The layer, as ``model.layers.3.mlp.up_proj``.

        Raises
        ------
        SiteError
            If the final norm and head alone do not give the logits, or no layer is named.
        InputError
            If several layers are named, or the layer is square and ``side`` is ``auto``.
        ShapeError
            If neither side of the layer is as wide as the residual stream.
        """
        module = model.module if isinstance(model, Model) else model
        sites = resolve(module, site)
        if len(sites) != 1:
            raise InputError(
                f"NeuronLens: expected one layer, got {str(site)!r}, which names {len(sites)}. "
                "Name one of them."
            )
        matrix = matrix_of(ModuleNames(module).modules[sites[0].path], sites[0])
        return self.of(model, self._vectors(matrix.detach(), _width(module), str(sites[0].path)))

    def of(self, model: Model | nn.Module, vectors: Float[Tensor, "unit dim"]) -> NeuronLensResult:
        """Return the tokens of any vectors in the residual stream, such as dictionary features.

        Parameters
        ----------
        model : Model or nn.Module
        vectors : Float[Tensor, "unit dim"]
        """
        module = model.module if isinstance(model, Model) else model
        layers = ModelBlocks(module)
        matrix = matrix_of(layers.head).detach()
        if vectors.shape[1] != matrix.shape[1]:
            raise ShapeError(
                f"NeuronLens: expected vectors of the residual stream, width {matrix.shape[1]}, "
                f"got {vectors.shape[1]}."
            )
        if self.gain:
            vectors = through_norms(layers.between, vectors)
        parts = list(self._tiles(matrix, vectors))
        columns = [torch.cat([part[i] for part in parts]).cpu() for i in range(6)]
        return NeuronLensResult(
            value=columns[0],
            n=len(vectors),
            unit="sd",
            direction="higher",
            conventions={"gain": self.gain, "se": "none: weights, not rows"},
            top=columns[1],
            top_score=columns[2],
            bottom=columns[3],
            bottom_score=columns[4],
            kurtosis=columns[5],
            words=_words(model, torch.cat([columns[1], columns[3]])),
        )

    def _tiles(
        self, matrix: Float[Tensor, "token dim"], vectors: Float[Tensor, "unit dim"]
    ) -> Iterator[tuple[Tensor, ...]]:
        n = min(self.n, len(matrix))
        for tile in vectors.to(matrix).split(max(1, TILE // len(matrix))):
            score = tile @ matrix.T
            kind = score.double() - score.double().mean(1, keepdim=True)
            variance = kind.square().mean(1).clamp(min=1e-300)
            top, bottom = score.topk(n, dim=1), score.topk(n, dim=1, largest=False)
            z = kind.amax(1) / variance.sqrt()
            kurtosis = kind.pow(4).mean(1) / variance.square() - 3.0
            yield z, top.indices, top.values, bottom.indices, bottom.values, kurtosis

    def _vectors(
        self, matrix: Float[Tensor, "out_dim in_dim"], dim: int, name: str
    ) -> Float[Tensor, "unit dim"]:
        reads, writes = matrix.shape[1] == dim, matrix.shape[0] == dim
        if self.side == "auto" and reads and writes:
            raise InputError(
                f"NeuronLens: {name} is square ({dim}), so its direction is unknown. Pass "
                "side='reads' if its units read the stream (rows), or side='writes' if they "
                "write into it (columns)."
            )
        if not (reads if self.side == "reads" else writes if self.side == "writes" else True) or (
            not reads and not writes
        ):
            raise ShapeError(
                f"NeuronLens: expected a layer whose input or output has the width {dim} of "
                f"the residual stream, got shape {tuple(matrix.shape)} at {name}. Name an up- "
                "or a down-projection."
            )
        return matrix if self.side == "reads" or (self.side == "auto" and reads) else matrix.T


def _words(model: Model | nn.Module, tokens: Int[Tensor, "unit token"]) -> tuple[str, ...]:
    """Return the text of each token, in order; nothing without a tokenizer."""
    tokenizer: Any = model.processor if isinstance(model, Model) else None
    if tokenizer is None:
        return ()
    named = {token: str(tokenizer.decode([token])) for token in tokens.unique().tolist()}
    return tuple(named[token] for token in tokens.flatten().tolist())


def through_norms(
    norms: list[nn.Module], vectors: Float[Tensor, "unit dim"]
) -> Float[Tensor, "unit dim"]:
    """Return the effect of norms on small added vectors, up to a scale that depends on the row.

    What a norm does is found by calling it: its gain from a row of known spread, and whether it
    removes the mean from a shifted row. A module that keeps the scale of a row counts as linear.
    """
    for norm in norms:
        like = next(norm.parameters(), vectors)
        generator = torch.Generator().manual_seed(0)
        row = torch.randn(1, 2, vectors.shape[1], generator=generator).to(like) * 100.0
        with torch.no_grad():
            odd, doubled, shifted = (_odd(norm, x)[0] for x in (row, 2 * row, row + 50.0))
            if not _equal(odd, doubled):
                vectors = _odd(norm, vectors[None].to(like))[0].to(vectors)
                continue
        plain = row[0].double()
        if _equal(odd, shifted):
            vectors = vectors - vectors.mean(1, keepdim=True)
            plain = plain - plain.mean(1, keepdim=True)
        gain = (odd * plain.square().mean(1, keepdim=True).sqrt() / plain)[0]
        vectors = vectors * gain.to(vectors)
    return vectors


def _odd(norm: nn.Module, x: Tensor) -> Tensor:
    """Return a module's output without the contribution of its bias."""
    return ((norm(x) - norm(-x)) / 2).double()


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().amax()))


def _width(module: nn.Module) -> int:
    return matrix_of(ModelBlocks(module).head).shape[1]
