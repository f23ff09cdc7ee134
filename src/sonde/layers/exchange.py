"""Exchange between two or more streams of states: swap, shift, compare, equalise or bridge."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from sonde.core.autocast import without_autocast
from sonde.core.errors import InputError, ShapeError
from sonde.core.renaming import renamed
from sonde.layers._attending import wide_type
from sonde.layers._pyramid import resized
from sonde.layers.layer import Layer

MAPS, TOKENS = "row dim high wide", "row token dim"
HOW = {
    "swap": TOKENS,
    "shift": MAPS,
    "difference": MAPS,
    "equalise": MAPS,
    "bridge": TOKENS,
    "concat_gate": TOKENS,
}


@renamed(move="share")
@final
class Exchange(Layer):
    """Exchange states between streams; trainable ways start as the identity.

    ``swap``: a fraction ``move`` of the units (``axis="channel"``) or tokens, every second one by
    default, moves to the other stream; a second swap moves it back. With ``axis="layer"`` the
    streams are the layers of two decoders, and whole layers change sides: every second one by
    default, so that the next layer meets what the other side decoded. ``shift``: in a pyramid of
    levels, fine to coarse, some channels of each level move a level up and as many a level down;
    with ``dim`` a 1 x 1 map of the result is added to each level. ``difference``: ``a + W m``,
    ``b - W m`` with ``m = (a - b) sigmoid(channel) sigmoid(place)``, both gates read ``|a - b|``.
    ``equalise``: channels weighted by both streams' means, then mixed in a window by
    ``exp(-|pos|^2 / 2 s1^2 - |f_i - f_j|^2 / 2 s2^2)``. ``bridge``: tokens of the first stream
    attend to the ``top`` best-scored tokens of the second. ``concat_gate``: each stream adds a
    linear map of both streams, each times its gate.

    Cost         none for ``swap``; else maps of dim^2 and the window, or the attention.
    Assumes      streams of one width.
    Differs      from BVR: the scores of ``bridge`` are trained by a separate loss on ``scores``.

    Parameters
    ----------
    how : str, default="swap"
        ``swap shift difference equalise bridge concat_gate``.
    dim : int, default=0
        Width; only ``swap`` and ``shift`` do without it.
    move : float, default=0.5
        Fraction of the units, tokens or layers that ``swap`` moves, evenly spread, or of the
        channels that ``shift`` moves, half of them up; 0 moves nothing.
    axis : {"channel", "position", "layer"}, default="channel"
        What ``swap`` exchanges: units (``channel``), tokens (``position``) or whole layers, maps of
        any size (``layer``).
    n_streams : int, default=2
        Levels of ``shift``; with ``axis="layer"`` the layers of both sides, those of the first side
        first.
    non_adjacent : bool, default=False
        ``shift`` joins the first and the last level.
    top : int, default=8
        Number of tokens of the second stream that a token attends to in ``bridge``.
    widths : (float, float), default=(1.0, 1.0)
        ``s1``, ``s2`` of ``equalise``.
    radius : int, default=2
        Half the width of the window of ``equalise``, and the largest distance that ``bridge`` has a
        learned vector for.

    References
    ----------
    chi2020relationnetpp
    """

    paper: ClassVar[str] = "chi2020relationnetpp"
    variants: ClassVar[Mapping[str, str]] = {
        "how='bridge'": "chi2020relationnetpp",
        "how='shift'": "zong2021rcnet",
        "axis='layer'": "dong2025lenet",
    }
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"axis": "position"},
        {"axis": "layer", "n_streams": 4},
        {"how": "shift", "dim": 4, "n_streams": 3},
        {"how": "difference", "dim": 4},
        {"how": "equalise", "dim": 4},
        {"how": "bridge", "dim": 4, "top": 3},
        {"how": "concat_gate", "dim": 4},
    )
    insertable = False

    def __init__(
        self,
        how: str = "swap",
        dim: int = 0,
        move: float = 0.5,
        axis: Literal["channel", "position", "layer"] = "channel",
        n_streams: int = 2,
        non_adjacent: bool = False,
        top: int = 8,
        widths: tuple[float, float] = (1.0, 1.0),
        radius: int = 2,
    ) -> None:
        super().__init__()
        if how not in HOW or (how not in ("swap", "shift") and not dim):
            raise InputError(
                f"Exchange: expected how as one of {', '.join(HOW)}, and a dim for all of "
                f"them except swap and shift, got how={how!r} and dim={dim}."
            )
        layers = how == "swap" and axis == "layer"
        few = n_streams < 2 or (n_streams % 2 if layers else how != "shift" and n_streams != 2)
        if few or not 0.0 <= move <= 1.0:
            raise InputError(
                "Exchange: expected two streams (more only for shift, or an even number of layers "
                f"of two sides) and a fraction in [0, 1], got {n_streams} and {move}."
            )
        self.how, self.move, self.axis, self.non_adjacent = how, move, axis, non_adjacent
        self.top, self.widths, self.radius = top, (float(widths[0]), float(widths[1])), radius
        if dim:
            self.dim = dim
        object.__setattr__(self, "layout", (MAPS if layers else HOW[how],) * n_streams)
        self.fuse: nn.ModuleList | None = None
        if dim and how != "swap":
            self._make(dim, n_streams)

    def _make(self, dim: int, n: int) -> None:
        """Create the parameters; the last map of each way is zero."""
        if self.how == "shift":
            self.fuse = nn.ModuleList([nn.Conv2d(dim, dim, 1, bias=False) for _ in range(n)])
            for part in self.fuse:
                nn.init.zeros_(part.get_parameter("weight"))
        elif self.how == "difference":
            self.channel, self.place = nn.Linear(dim, dim), nn.Conv2d(1, 1, 3, padding=1)
            self.out = _zeros(nn.Conv2d(dim, dim, 1, bias=False))
        elif self.how == "equalise":
            self.channel = _zeros(nn.Linear(2 * dim, 2 * dim))
            self.gate = nn.Parameter(torch.zeros(()))
        elif self.how == "bridge":
            self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
            self.near = nn.Parameter(0.02 * torch.randn(2 * self.radius + 1, dim))
            self.score, self.out = nn.Linear(dim, 1), _zeros(nn.Linear(dim, dim))
        else:
            self.missing = nn.Parameter(torch.zeros(2, dim))
            self.gates = nn.Linear(2 * dim, 2)
            self.out = _zeros(nn.Linear(2 * dim, 2 * dim))

    def forward(
        self,
        *streams: Float[Tensor, "row *_"],
        present: Sequence[Bool[Tensor, "row"]] | None = None,
        mask: Bool[Tensor, "row token"] | None = None,
    ) -> tuple[Tensor, ...]:
        """Return the streams after the exchange.

        Parameters
        ----------
        *streams : Float[Tensor, "row token dim"] or Float[Tensor, "row dim high wide"]
        present : one Bool[Tensor, "row"] for each stream, optional
            True for rows that the stream has. An absent row has no influence on other rows.
            ``concat_gate`` puts a learned vector in its place; otherwise it comes out as zeros, and
            the same row of other streams is unchanged.
        mask : Bool[Tensor, "row token"], optional
            True for real tokens; for ``bridge`` those of the second stream.
        """
        if len(streams) != len(self.layout):
            raise ShapeError(
                f"Exchange.forward: expected {len(self.layout)} streams ({HOW[self.how]}), got "
                f"{len(streams)}."
            )
        half = len(streams) // 2
        for a, b in zip(streams[:half], streams[half:], strict=self.how != "shift"):
            if self.how not in ("shift", "bridge") and a.shape != b.shape:
                raise ShapeError(
                    f"Exchange.forward: expected streams of one shape ({self.layout[0]}), got "
                    f"{tuple(a.shape)} and {tuple(b.shape)}."
                )
        if present is None:
            return self._exchanged(streams, None, mask)
        flags_of_streams = [
            p.reshape(-1, *[1] * (s.ndim - 1)) for s, p in zip(streams, present, strict=True)
        ]
        missing = self.missing if self.how == "concat_gate" else [s.new_zeros(()) for s in streams]
        full = [
            torch.where(p, s, m) for s, p, m in zip(streams, flags_of_streams, missing, strict=True)
        ]
        new = self._exchanged(full, flags_of_streams, mask)
        if self.how == "concat_gate":
            return new
        flags = torch.stack([p.reshape(-1) for p in flags_of_streams]).all(0)
        pairs = zip(new, full, strict=True)
        return tuple(torch.where(flags.reshape(-1, *[1] * (y.ndim - 1)), y, s) for y, s in pairs)

    def _exchanged(
        self, streams: Sequence[Tensor], known: Sequence[Tensor] | None, mask: Tensor | None
    ) -> tuple[Tensor, ...]:
        if self.how == "shift":
            moved = self.shifted(*streams)
            if self.fuse is None:
                return moved
            return tuple(x + f(y) for x, f, y in zip(streams, self.fuse, moved, strict=True))
        if self.how == "swap" and self.axis == "layer":
            half = len(streams) // 2
            moves = self._moves(torch.arange(1, half + 1)).tolist()
            side = (half * moved for moved in moves)
            partner = [i + by for i, by in enumerate(side)]
            return tuple(
                streams[i] for i in (*partner, *((p + half) % len(streams) for p in partner))
            )
        a, b = streams
        if self.how == "swap":
            moves = self._swapped(a, mask)
            return torch.where(moves, b, a), torch.where(moves, a, b)
        if self.how == "difference":
            change = self.out(self.difference(a, b))
            return a + change, b - change
        if self.how == "equalise":
            both = torch.cat((a, b), 1)
            gain = 2.0 * torch.sigmoid(self.channel(both.mean((2, 3))))[:, :, None, None]
            mixed = (both * gain) + self.gate * (self.blurred(both * gain) - both * gain)
            return mixed[:, : a.shape[1]], mixed[:, a.shape[1] :]
        if self.how == "bridge":
            return a + self.out(self._bridged(a, b, mask)), b
        gate = torch.sigmoid(self.gates(torch.cat((a, b), -1)))
        kept = [
            g if known is None else g * p
            for g, p in zip(gate.split(1, -1), known or (1, 1), strict=True)
        ]
        change = self.out(torch.cat((kept[0] * a, kept[1] * b), -1))
        return a + change[..., : a.shape[-1]], b + change[..., a.shape[-1] :]

    def _swapped(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return a mask of the units, or of a row's real tokens, that move: every second at 0.5."""
        if self.axis == "channel":
            return self._moves(torch.arange(1, x.shape[-1] + 1, device=x.device))
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        return (real & self._moves(real.cumsum(1))).unsqueeze(-1)

    def _moves(self, number: Tensor) -> Tensor:
        """Return whether the units or tokens with these numbers, counted from 1, move."""
        before, after = ((n * self.move + 1e-9).floor() for n in (number - 1, number.double()))
        return after > before

    def difference(
        self, a: Float[Tensor, "row dim high wide"], b: Float[Tensor, "row dim high wide"]
    ) -> Float[Tensor, "row dim high wide"]:
        """Return the gated difference: zero for equal streams, with its sign flipped by a swap."""
        size = (a - b).abs()
        channel = torch.sigmoid(self.channel(size.mean((2, 3))))[:, :, None, None]
        return (a - b) * channel * torch.sigmoid(self.place(size.mean(1, keepdim=True)))

    def shifted(self, *levels: Float[Tensor, "row dim _ _"]) -> tuple[Tensor, ...]:
        """Return the levels after the shift of channels: first group up, second group down."""
        n, each = len(levels), int(levels[0].shape[1] * self.move / 2)
        moved: list[Tensor] = []
        for i, x in enumerate(levels):
            below, above = levels[i - 1], levels[(i + 1) % n]
            up = below if i or self.non_adjacent else x
            down = above if i + 1 < n or self.non_adjacent else x
            size = (x.shape[2], x.shape[3])
            parts = (resized(up[:, :each], size), resized(down[:, each : 2 * each], size))
            moved.append(torch.cat((*parts, x[:, 2 * each :]), 1))
        return tuple(moved)

    def blurred(self, x: Float[Tensor, "row dim high wide"]) -> Float[Tensor, "row dim high wide"]:
        """Return the bilateral mean in the window; weights of positions on the grid sum to 1."""
        near, far = self.widths
        size, total = torch.zeros_like(x), torch.zeros_like(x[:, :1])
        r, high, wide = self.radius, x.shape[2], x.shape[3]
        padded = functional.pad(x, (r, r, r, r))
        real = functional.pad(torch.ones_like(x[:1, :1]), (r, r, r, r))
        for i in range(2 * r + 1):
            for j in range(2 * r + 1):
                other = padded[:, :, i : i + high, j : j + wide]
                apart = (other - x).square().sum(1, keepdim=True) / (2.0 * far * far)
                place = ((i - r) ** 2 + (j - r) ** 2) / (2.0 * near * near)
                weight = torch.exp(-apart - place) * real[:, :, i : i + high, j : j + wide]
                size, total = size + weight * other, total + weight
        return size / total

    def scores(self, x: Float[Tensor, "row token dim"]) -> Float[Tensor, "row token"]:
        """Return the scores by which ``bridge`` chooses tokens of the second stream."""
        return self.score(x).squeeze(-1)

    def _bridged(self, a: Tensor, b: Tensor, mask: Tensor | None) -> Tensor:
        score = self.scores(b)
        score = score if mask is None else score.masked_fill(~mask, -torch.inf)
        best, places = score.topk(min(self.top, b.shape[1]), dim=1)
        chosen = b.gather(1, places.unsqueeze(-1).expand(-1, -1, b.shape[-1]))
        query, key, value = self.query(a), self.key(chosen), self.value(chosen)
        first = torch.arange(a.shape[1], device=a.device)[None, :, None]
        apart = (places.unsqueeze(1) - first).clamp(-self.radius, self.radius) + self.radius
        near = self.near.to(wide_type(query)).T
        by_place = (query.to(near) @ near).gather(-1, apart)
        with without_autocast(a.device):  # half types overflow
            query, key, value = (y.to(wide_type(y)) for y in (query, key, value))
            logits = (query @ key.transpose(1, 2) + by_place.to(query)) / a.shape[-1] ** 0.5
            hidden = torch.isinf(best).unsqueeze(1)
            mixed = logits.masked_fill(hidden, -torch.inf).softmax(-1) @ value
        return mixed.to(a.dtype)


def _zeros(layer: Any) -> Any:
    """Return a linear map whose weights and bias are zero."""
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer
