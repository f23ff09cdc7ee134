"""Hide some positions of a site and predict them from the others, as an auxiliary task.

For states whose positions should carry information about each other: tokens, patches, frames. If
layers before the site mix positions, hidden values leak: hide the input too.
"""

from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, layer_norm

from sonde.core.autocast import NARROW, in_float32
from sonde.core.errors import InputError
from sonde.engine.steps import seeded
from sonde.tap.hooks.latest import CopiedLock
from sonde.train._callers import OfStep
from sonde.train._draws import Draws

Target = Literal["features", "codes", "embeddings", "pixels"]


@final
class MaskedFeatures(nn.Module):
    """Error of predicting hidden positions, averaged over hidden positions, then over rows.

    A learned vector replaces the hidden positions, also in the forward of a model in training mode,
    so that the layers above work without them. Padding is never hidden. Sines and cosines of the
    position, times a learned gain, are added to all positions. A rebuilder (two layers of a
    transformer, or 1x1 convolutions, thrown away later) is applied to the result. ``features``:
    squared distance to the hidden rows after a layer norm; ``embeddings``: to the rows ``y`` of
    another site after a layer norm; ``pixels``: to ``y`` as it is; ``codes``: cross entropy of the
    codes ``y``. No gradient goes to targets.

    Range        [0, inf); lower = better rebuilt. 1 for ``features`` that cannot be predicted.
    Cost         that of the rebuilder, O(pos^2 dim) for the transformer.
    Assumes      positions in the same order in every row. A rebuilder of your own that mixes
                 positions has to leave out padding itself.
    Batching     mean, given the mask.

    Parameters
    ----------
    target : {"features", "codes", "embeddings", "pixels"}, default="features"
        Values that are predicted at hidden positions.
    how : {"random", "block", "tube"}, default="random"
        Hidden positions: any, a contiguous run, or the same places in each of ``times`` frames.
    ratio : float, default=0.5
        Fraction of a row's positions that are hidden, padding apart; rounded.
    rebuilder : {"transformer", "conv"} or nn.Module, default="transformer"
        A module of your own gets no sines and cosines: if it adds no positions itself, it rebuilds
        all hidden positions alike.
    width : int, optional
        Width of the target, or the number of codes; by default the width of ``x``.
    positions : int, optional
        Positions of an example, if one axis holds (example pos), as from the reducer ``tokens``.
    times : int, default=1
        Frames, of "tube".
    head : nn.Module, optional
        Task head that takes (example, pos, dim): the cross entropy of its answer on rebuilt states
        is added. Its weights are trained with the model, not here.
    seed : int, default=0
        Seed of the choice of hidden positions.
    in_forward : bool, default=True
        Hide the positions in the model's forward too. If False, the loss alone sees the vector.

    References
    ----------
    he2022mae
    """

    paper: ClassVar[str] = "he2022mae"
    variants: ClassVar[dict[str, str]] = {"head": "zhou2025mfm"}
    batching: ClassVar[str] = "mean"
    reducer: ClassVar[None] = None  # states with their positions
    has_loss: ClassVar[bool] = True
    reads_changed: ClassVar[bool] = True
    examples: ClassVar[tuple[dict, ...]] = ({"rebuilder": "conv"}, {"target": "pixels", "width": 2})

    def __init__(
        self,
        target: Target = "features",
        how: Literal["random", "block", "tube"] = "random",
        ratio: float = 0.5,
        rebuilder: str | nn.Module = "transformer",
        width: int | None = None,
        positions: int | None = None,
        times: int = 1,
        head: nn.Module | None = None,
        seed: int = 0,
        in_forward: bool = True,
    ) -> None:
        super().__init__()
        is_known = target in ("features", "codes", "embeddings", "pixels")
        if not is_known or how not in ("random", "block", "tube") or not 0 <= ratio <= 1:
            raise InputError(
                "MaskedFeatures: expected a known target and mask, and ratio in [0, 1], got "
                f"{target!r}, {how!r}, {ratio}."
            )
        self.target, self.how, self.ratio, self.times = target, how, ratio, times
        self.width, self.positions, self.kind = width, positions, rebuilder
        self.empty, self.gain = nn.UninitializedParameter(), nn.Parameter(torch.zeros(()))
        self.rebuilder = rebuilder if isinstance(rebuilder, nn.Module) else nn.Identity()
        self.out: nn.Module = nn.Identity()
        self._head = (head,)  # not registered: its weights are the model's
        self.draws, self.in_forward = Draws(seed), in_forward
        self._hidden: OfStep[Tensor] = OfStep()
        self._turn = CopiedLock()
        self.register_load_state_dict_pre_hook(_as_wide)

    @in_float32
    def forward(
        self,
        x: Float[Tensor, "*axes dim"],
        y: Tensor | None = None,
        label: Tensor | None = None,
        mask: Bool[Tensor, "row pos"] | None = None,
        real: Bool[Tensor, "row pos"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the prediction error.

        Parameters
        ----------
        x : Float[Tensor, "row pos dim"]
            Of the site.
        y : Tensor, optional
            Target (row, pos, width), or codes (row, pos).
        label : Tensor, optional
            For ``head``.
        mask : Bool[Tensor, "row pos"], optional
            True where hidden; by default as in the forward, or drawn.
        real : Bool[Tensor, "row pos"], optional
            False where padding.
        """
        x = self._by_position(x)
        hidden = self._chosen(x, real) if mask is None else mask
        self._build(x)
        rebuilt = self._rebuilt(torch.where(hidden[..., None], self.empty.to(x.dtype), x), real)
        if not bool(hidden.any()):
            return 0.0 * rebuilt[hidden].sum()
        each = self._errors(self.out(rebuilt)[hidden], self._goal(x, y)[hidden])
        count = hidden.sum(1)
        value = (each / count[hidden.nonzero()[:, 0]]).sum() / (count > 0).sum()
        (head,) = self._head
        if head is None:
            return value
        if label is None:
            raise InputError("MaskedFeatures: expected label with head, got none. Pass label=...")
        return value + cross_entropy(head(torch.where(hidden[..., None], rebuilt, x)), label)

    def change(
        self, x: Float[Tensor, "*axes dim"], real: Bool[Tensor, "row pos"] | None = None
    ) -> Float[Tensor, "*axes dim"]:
        """Return states with the learned vector at random positions, which are recorded."""
        if not self.training:
            return x
        rows = self._by_position(x)
        self._build(rows.float() if rows.dtype in NARROW else rows)
        hidden = self.hidden(len(rows), rows.shape[1], real).to(x.device)
        self._hidden.add(hidden)
        whole = torch.where(hidden[..., None], self.empty.to(rows.dtype), rows)
        return whole.reshape(x.shape)

    def _chosen(self, x: Tensor, real: Tensor | None) -> Tensor:
        """Return the positions hidden in these rows' forward passes, or new random positions."""
        kept = self._hidden.taken(lone=True)
        positions: list[Tensor] = []
        while self.training and kept and sum(map(len, positions)) < len(x):
            positions.insert(0, kept.pop())
        if positions and torch.cat(positions).shape == x.shape[:2]:
            return torch.cat(positions)
        return self.hidden(len(x), x.shape[1], real).to(x.device)

    def _rebuilt(self, whole: Tensor, real: Tensor | None) -> Tensor:
        """Return the predictions; sonde's own predictors see only real positions."""
        if not isinstance(self.kind, str):
            return self.rebuilder(whole)
        whole = whole + self.gain.to(whole.dtype) * _waves(whole, real)
        if self.kind != "transformer" or real is None:
            return self.rebuilder(whole)
        unseen = ~real & real.any(1, keepdim=True)
        return self.rebuilder(whole, src_key_padding_mask=unseen.to(whole.device))

    def hidden(
        self, n: int, n_positions: int, real: Bool[Tensor, "row pos"] | None = None
    ) -> Bool[Tensor, "row pos"]:
        """Draw the hidden positions of ``n`` rows: an equal fraction of each row, never padding."""
        if real is not None and not bool(real.all()):
            return self._hidden_of_real(real.cpu())
        draw = self.draws.next()
        places = n_positions // self.times if self.how == "tube" else n_positions
        if self.how == "tube" and places * self.times != n_positions:
            raise InputError(
                f"MaskedFeatures: expected positions in {self.times} frames, got {n_positions}."
            )
        count = round(self.ratio * places)
        if self.how == "block":
            start = torch.randint(places - count + 1, (n, 1), generator=draw)
            at = torch.arange(places)
            return (at >= start) & (at < start + count)
        order = torch.rand(n, places, generator=draw).argsort(1).argsort(1)
        return (order < count).repeat(1, self.times if self.how == "tube" else 1)

    def _hidden_of_real(self, real: Tensor) -> Tensor:
        draw = self.draws.next()
        if self.how == "tube":  # whole columns of places, wherever frames are real
            n, places = len(real), real.shape[1] // self.times
            order = torch.rand(n, places, generator=draw).argsort(1).argsort(1)
            return (order < round(self.ratio * places)).repeat(1, self.times) & real
        n_real = real.sum(1, keepdim=True)
        count = (self.ratio * n_real).round()
        if self.how == "block":
            start = (torch.rand(len(real), 1, generator=draw) * (n_real - count + 1)).floor()
            at = real.cumsum(1) - 1
            return real & (at >= start) & (at < start + count)
        order = torch.rand(real.shape, generator=draw).masked_fill(~real, torch.inf)
        return real & (order.argsort(1).argsort(1) < count)

    def _by_position(self, x: Tensor) -> Tensor:
        if x.ndim == 3:
            return x
        if self.positions is None or x.ndim != 2 or len(x) % self.positions:
            raise InputError(
                "MaskedFeatures: expected states (row, pos, dim), got shape "
                f"{tuple(x.shape)}. Read the site with reducer=None, or pass positions=, the "
                "number of an example."
            )
        return x.reshape(-1, self.positions, x.shape[1])

    def _goal(self, x: Tensor, y: Tensor | None) -> Tensor:
        if self.target == "features":
            return layer_norm(x.detach(), x.shape[2:])
        if y is None:
            raise InputError(f"MaskedFeatures: expected y, the {self.target}. Pass y=...")
        if self.target == "codes":
            return y.reshape(x.shape[:2])
        given = y.detach().reshape(*x.shape[:2], -1).to(x)
        return given if self.target == "pixels" else layer_norm(given, given.shape[2:])

    def _errors(self, made: Tensor, goal: Tensor) -> Tensor:
        """Return the error of each hidden position."""
        if self.target == "codes":
            return cross_entropy(made, goal, reduction="none")
        if made.shape != goal.shape:
            raise InputError(
                f"MaskedFeatures: expected a target of width {made.shape[1]}, got "
                f"{goal.shape[1]}. Pass width={goal.shape[1]}."
            )
        return (made - goal).square().mean(1)

    def _build(self, x: Tensor) -> None:
        """Create vector, predictor and output at the first call, as wide as the site."""
        with self._turn:
            if isinstance(self.empty, nn.UninitializedParameter):
                with seeded(self.draws.seed):
                    self._made(x)

    def _made(self, x: Tensor) -> None:
        dim = x.shape[2]
        self.empty.materialize((dim,), x.device, x.dtype)
        nn.init.zeros_(self.empty)
        self.gain.data = x.detach().square().mean().sqrt()  # positions as large as states
        if self.kind == "conv":
            parts = [nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim)]
            self.rebuilder = nn.Sequential(*parts).to(x)
        elif self.kind == "transformer":
            heads = next(h for h in (8, 4, 2, 1) if dim % h == 0)
            layer = nn.TransformerEncoderLayer(dim, heads, 2 * dim, 0.0, batch_first=True)
            self.rebuilder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).to(x)
        if self.width is not None and self.width != dim:
            self.out = nn.Linear(dim, self.width).to(x)


def _waves(x: Float[Tensor, "row pos dim"], real: Tensor | None = None) -> Tensor:
    """Return sines and cosines of the position, with wavelengths from 2 pi to 20,000 pi.

    Positions count from the first that is real: the result is (pos, dim), or (row, pos, dim).
    """
    place = torch.arange(x.shape[1], device=x.device, dtype=torch.float64)
    if real is not None:
        place = (real.to(x.device).cumsum(1) - 1).clamp(min=0).double()
    unit = torch.arange(x.shape[2], device=x.device)
    angle = place[..., None] / 10_000 ** ((unit - unit % 2).double() / x.shape[2])
    return torch.where(unit % 2 == 0, angle.sin(), angle.cos()).to(x)


def _as_wide(loss: MaskedFeatures, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Create the lazy parts with the width of the saved state."""
    saved = state.get(f"{prefix}empty")
    if saved is not None:
        loss._build(saved.reshape(1, 1, -1))
