"""Hide some positions of a site and rebuild them from the others, as a task beside the model's own.

For states whose positions should carry information about each other: tokens, patches, frames. If
layers before the site mix positions, hidden values leak: hide the input too.
"""

from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, layer_norm

from sonde.core.autocast import in_float32
from sonde.core.errors import InputError
from sonde.engine.steps import seeded
from sonde.train._draws import Draws

Target = Literal["features", "codes", "embeddings", "pixels"]


@final
class MaskedFeatures(nn.Module):
    """Error of rebuilding hidden positions, mean over hidden positions, then over rows.

    A learned vector replaces the hidden positions. Sines and cosines of the position, times a
    learned gain, are added to all positions. A rebuilder (two layers of a transformer, or 1x1
    convolutions, thrown away later) is applied to the result. ``features``: squared distance to the
    hidden rows after a layer norm; ``embeddings``: to the rows ``y`` of another site after a layer
    norm; ``pixels``: to ``y`` as it is; ``codes``: cross entropy of the codes ``y``. No gradient
    goes to targets.

    Range        [0, inf); lower = better rebuilt. 1 for ``features`` that cannot be predicted.
    Cost         that of the rebuilder, O(pos^2 dim) for the transformer.
    Assumes      positions in the same order in every row.
    Batching     mean, given the mask: equally many hidden positions in every row.

    Parameters
    ----------
    target : {"features", "codes", "embeddings", "pixels"}, default="features"
    how : {"random", "block", "tube"}, default="random"
        Hidden positions: any, a contiguous run, or the same places in each of ``times`` frames.
    ratio : float, default=0.5
        Share of positions that are hidden, rounded.
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

    References
    ----------
    he2022mae
    """

    paper: ClassVar[str] = "he2022mae"
    variants: ClassVar[dict[str, str]] = {"head": "daskalakis2023mfm"}
    batching: ClassVar[str] = "mean"
    reducer: ClassVar[None] = None  # states with their positions
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
    ) -> None:
        super().__init__()
        known = target in ("features", "codes", "embeddings", "pixels")
        if not known or how not in ("random", "block", "tube") or not 0 <= ratio <= 1:
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
        self.draws = Draws(seed)
        self.register_load_state_dict_pre_hook(_as_wide)

    @in_float32
    def forward(
        self,
        x: Float[Tensor, "*axes dim"],
        y: Tensor | None = None,
        label: Tensor | None = None,
        mask: Bool[Tensor, "row pos"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the error of rebuilding.

        Parameters
        ----------
        x : Float[Tensor, "row pos dim"]
            Of the site.
        y : Tensor, optional
            Target (row, pos, width), or codes (row, pos).
        label : Tensor, optional
            For ``head``.
        mask : Bool[Tensor, "row pos"], optional
            True where hidden, at equally many positions in every row; by default drawn.
        """
        x = self._by_position(x)
        hidden = self.hidden(*x.shape[:2]).to(x.device) if mask is None else mask
        self._build(x)
        whole = torch.where(hidden[..., None], self.empty.to(x.dtype), x)
        if isinstance(self.kind, str):
            whole = whole + self.gain.to(x.dtype) * _waves(x)
        made = self.rebuilder(whole)
        if not bool(hidden.any()):
            return 0.0 * made.sum()
        value = self._error(self.out(made)[hidden], self._goal(x, y)[hidden])
        (head,) = self._head
        if head is None:
            return value
        if label is None:
            raise InputError("MaskedFeatures: expected label beside head. Pass label=...")
        return value + cross_entropy(head(torch.where(hidden[..., None], made, x)), label)

    def hidden(self, n: int, n_positions: int) -> Bool[Tensor, "row pos"]:
        """Draw the hidden positions of ``n`` rows, equally many in each row."""
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

    def _error(self, made: Tensor, goal: Tensor) -> Tensor:
        if self.target == "codes":
            return cross_entropy(made, goal)
        if made.shape != goal.shape:
            raise InputError(
                f"MaskedFeatures: expected a target of width {made.shape[1]}, got "
                f"{goal.shape[1]}. Pass width={goal.shape[1]}."
            )
        return (made - goal).square().mean()

    def _build(self, x: Tensor) -> None:
        """Make vector, rebuilder and output at the first call, as wide as the site."""
        if not isinstance(self.empty, nn.UninitializedParameter):
            return
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


def _waves(x: Float[Tensor, "row pos dim"]) -> Float[Tensor, "pos dim"]:
    """Return sines and cosines of the position, with wavelengths from 2 pi to 20,000 pi."""
    place = torch.arange(x.shape[1], device=x.device, dtype=torch.float64)
    unit = torch.arange(x.shape[2], device=x.device)
    angle = place[:, None] / 10_000 ** ((unit - unit % 2).double() / x.shape[2])
    return torch.where(unit % 2 == 0, angle.sin(), angle.cos()).to(x)


def _as_wide(loss: MaskedFeatures, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Create the lazy parts at the width of the saved state."""
    saved = state.get(f"{prefix}empty")
    if saved is not None:
        loss._build(saved.reshape(1, 1, -1))
