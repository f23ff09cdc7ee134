"""Make the residual stream of a transformer narrower: all blocks lose equal directions.

Every layer that reads or writes the stream becomes smaller, and no kernel is needed. For channels,
neurons and heads inside blocks, ``PruneChannels``; for whole blocks, ``DropBlocks``.
"""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.compress._blocks import placed_call
from sonde.compress._grid import method_of
from sonde.compress._scaling import SAME, answers_of
from sonde.compress._stream import Stream
from sonde.compress.grams import without_padding
from sonde.core.errors import InputError
from sonde.core.inputs import Inputs, Model
from sonde.core.ranges import check_ranges
from sonde.core.renaming import renamed
from sonde.tap import calls_of
from sonde.tap.rows.padding import right_padded
from sonde.weights import Change, Examples, Exchange, Resized, Rewrite, RewritePlan
from sonde.weights.change import rounded_to_half
from sonde.weights.own_config import with_own_config


@renamed(remove="share")
@final
@dataclass(frozen=True)
class SliceWidth(Rewrite):
    """Write the residual stream in its principal directions, and remove the last ones.

    A norm without its gain gives the same rows in rotated coordinates, so the stream may be rotated
    if gains go into the layers behind norms. With ``H`` the mean of ``z z^T`` over rows ``z`` that
    norms give without gain, and ``Q`` its first eigenvectors, readers become ``W diag(gain) Q`` and
    writers ``Q^T W``. If norms subtract means, ``Q`` is orthogonal to the vector of ones, and the
    new coordinates have mean 0 too: the norms stay what they are.

    Range        the width that stays, from 2; at full width the answers stay.
    Cost         one pass over the data, state 8 dim^2 bytes; O(dim^3).
    Assumes      a stream that is a sum of layers' outputs, read by norms alone (no norm behind the
                 sum, as in BERT, and no gate on a branch); inputs that the model will meet.
    Differs      from the paper: one rotation for all blocks, from the mean over all norms, so that
                 no matrices stand in the stream; layers before and behind the blocks are narrower
                 too. Tied embeddings become two.

    Parameters
    ----------
    remove : float, default=0.25
        Fraction of the residual stream's width that is removed, in [0, 1); 0 changes nothing.
    round_to : int, default=8
        The width that stays is a multiple of this, or the whole.
    half : bool, default=True
        Round weights to float16 (bfloat16 if one is too large), so that files are smaller.

    References
    ----------
    ashkboos2024slicegpt
    """

    remove: float = 0.25
    round_to: int = 8
    half: bool = True
    paper: ClassVar[str] = "ashkboos2024slicegpt"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"remove": 0.4, "round_to": 3})

    def __post_init__(self) -> None:
        check_ranges(self, remove="[0, 1)", round_to=">= 1")

    def reads(self) -> dict[str, Examples]:
        """Read examples, to which the directions of the stream are fitted."""
        return {"calibration": Examples()}

    def planned(self, model: Model, calibration: Inputs) -> RewritePlan:
        """Return the narrower layers.

        Raises
        ------
        InputError
            If the model has no stream that can be rotated, with the reason.
        """
        word = method_of("SliceWidth", asdict(self))
        if self.remove == 0:
            return RewritePlan.of(model, {}, word)
        stream = Stream.of("SliceWidth", model, calibration)
        dim = stream.width
        width = -(-(dim - round(self.remove * dim)) // self.round_to) * self.round_to
        width = min(dim, max(width, 2))
        values, vectors = _directions(_seen(model, stream, calibration), stream.centred)
        whole = self._plan(model, stream, _into(vectors, dim, stream.centred), word, {})
        self._require_same(model, whole, calibration)
        if width == dim:
            return RewritePlan.of(model, {}, word)
        n = width - stream.centred
        new = _into(vectors[:, :n], width, stream.centred)
        lost = float(values[n:].sum() / values.sum())
        plan = self._plan(model, stream, new, word, {"width": float(width), "lost": lost})
        return with_own_config(model, plan)

    def _plan(
        self, model: Model, stream: Stream, into: Tensor, word: str, figures: dict[str, float]
    ) -> RewritePlan:
        named, changes = model.module.state_dict(), dict[str, Change]()
        for name, x in stream.mapped(model.module, into).items():
            new = rounded_to_half(x) if self.half and figures else x
            values = new.to(named[name].dtype)
            same = values.shape == named[name].shape
            changes[name] = Exchange(values) if same else Resized(values)
        return RewritePlan.shaped(model, changes, word, figures)

    def _require_same(self, model: Model, whole: RewritePlan, inputs: Inputs) -> None:
        """Raise for a model whose answers change after a rotation of full width."""
        args, kwargs = placed_call(model, right_padded(next(iter(inputs.batches(0, 1)))))
        wanted = answers_of(model.module, args, kwargs)
        gap = (answers_of(whole.fold(model), args, kwargs) - wanted).abs().max()
        coarse = max(SAME, 8 * torch.finfo(next(model.module.parameters()).dtype).eps)
        if not bool(gap <= coarse * wanted.abs().max()):
            raise InputError(
                f"SliceWidth.plan: {type(model.module).__name__} gives other answers if its "
                "residual stream is rotated: a module reads the stream without a norm, or a "
                "norm does more than divide and scale. Use PruneChannels or DropBlocks."
            )


def _seen(model: Model, stream: Stream, inputs: Inputs) -> Float[Tensor, "dim dim"]:
    """Return the mean of ``z z^T`` over the rows of all norms, without their gains.

    Raises
    ------
    InputError
        If no row is finite.
    """
    norms = [model.module.get_submodule(name) for name in stream.readers]
    total, n = torch.zeros(stream.width, stream.width, dtype=torch.float64), 0
    for batch in map(right_padded, inputs.batches(0, len(inputs))):
        for _, x in calls_of(model.module, norms, *placed_call(model, batch)):
            rows = without_padding(x, batch).reshape(-1, stream.width).double()
            rows = rows - rows.mean(1, keepdim=True) if stream.centred else rows
            rows = rows / rows.square().mean(1, keepdim=True).sqrt().clamp(min=1e-30)
            rows = rows[torch.isfinite(rows).all(1)].cpu()
            total, n = total + rows.T @ rows, n + len(rows)
    if not n:
        raise InputError("SliceWidth.plan: expected finite rows in the residual stream, got none.")
    return total / n


def _directions(
    h: Float[Tensor, "dim dim"], centred: bool
) -> tuple[Float[Tensor, "most"], Float[Tensor, "dim most"]]:
    """Return variances and directions in decreasing order, without the ones vector if centred."""
    inner = _centred_basis(len(h)) if centred else torch.eye(len(h), dtype=torch.float64)
    values, vectors = torch.linalg.eigh(inner.T @ h @ inner)
    return values.flip(0), inner @ vectors.flip(1)


def _into(vectors: Float[Tensor, "dim n"], width: int, centred: bool) -> Float[Tensor, "dim width"]:
    """Return the map to new coordinates, which keeps rows of mean 0 at mean 0."""
    return vectors @ _centred_basis(width).T if centred else vectors


def _centred_basis(dim: int) -> Float[Tensor, "dim less"]:
    """Return an orthonormal basis of the space orthogonal to the vector of ones."""
    ones = torch.ones(dim, 1, dtype=torch.float64)
    whole = torch.linalg.qr(torch.cat([ones, torch.eye(dim, dtype=torch.float64)[:, 1:]], 1)).Q
    return whole[:, 1:]
