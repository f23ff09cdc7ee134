"""Write the hidden states of a signal from its symbols: the first of two stages of a synthesis.

The second stage, from states to the signal, needs no symbols: take ``InputDecoder``, trained on
signals that nobody transcribed.
"""

from typing import ClassVar, cast, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sonde.core.errors import InputError, ShapeError

PADDING = -1


@final
class StateWriter(nn.Module):
    """Mean state and duration of each symbol in its context, and the states of frames from these.

    Two convolutions over embedded symbols, with linear maps to a mean state and to the logarithm of
    a duration in frames. Training needs no durations: ``monotonic_durations`` finds those in which
    the means lie closest to the states, anew in each call. The loss is the squared error of the
    states, plus that of the logarithms of durations.

    Range        [0, inf), squared units of the states; lower = states written better.
    Cost         ``6 hidden^2`` products a symbol; the alignment ``token time`` steps a row.
    Assumes      symbols in the order of the frames, each for one frame at least.
    Differs      from WavThruVec: convolutions for a transformer, an alignment by dynamic
                 programming, and a symbol's frames have one state.
    Batching     mean over frames and over symbols.

    Parameters
    ----------
    n_symbols : int
        Size of the alphabet.
    dim : int
        Width of the states.
    hidden : int, default=64
        Channels of the convolutions.

    Examples
    --------
    >>> writer = StateWriter(5, 3)
    >>> states, real = writer.write(torch.tensor([[0, 4, 2]]), torch.tensor([[2, 1, 3]]))
    >>> states.shape, int(real.sum())
    (torch.Size([1, 6, 3]), 6)

    References
    ----------
    siuzdak2022wavthruvec
    """

    paper: ClassVar[str] = "siuzdak2022wavthruvec"

    def __init__(self, n_symbols: int, dim: int, hidden: int = 64) -> None:
        super().__init__()
        if min(n_symbols, dim, hidden) < 1:
            raise InputError(
                "StateWriter: expected sizes of at least 1, got "
                f"n_symbols={n_symbols}, dim={dim} and hidden={hidden}."
            )
        self.n_symbols, self.dim = n_symbols, dim
        self.symbols = nn.Embedding(n_symbols, hidden)
        self.mixes = nn.ModuleList(nn.Conv1d(hidden, hidden, 3, padding=1) for _ in range(2))
        self.mean, self.length = nn.Linear(hidden, dim), nn.Linear(hidden, 1)

    def forward(
        self,
        symbols: Int[Tensor, "row token"],
        states: Float[Tensor, "row time dim"],
        real: Bool[Tensor, "row time"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss of writing states.

        Parameters
        ----------
        symbols : Int[Tensor, "row token"]
            Padded by -1 behind each row's last symbol.
        states : Float[Tensor, "row time dim"]
            States of the frames, from the encoder of the signal; no gradient goes into them.
        real : Bool[Tensor, "row time"], optional
            True for frames that are not padding, which are the first of each row.
        """
        states = states.detach()
        frames = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        frames = frames if real is None else real
        mean, length = self.moments(symbols)
        named = symbols != PADDING
        for what, is_real in (("symbols", named), ("frames", frames)):
            if bool((is_real[:, 1:] & ~is_real[:, :-1]).any()):
                raise InputError(
                    f"StateWriter: expected padding behind the last of a row's {what}, got a row "
                    "with padding before or between them."
                )
        with torch.no_grad():
            apart = torch.cdist(mean, states).square()
            durations = monotonic_durations(apart, named.sum(1), frames.sum(1))
        owner = _owners(durations, states.shape[1])
        written = mean.gather(1, owner[..., None].expand(-1, -1, self.dim))
        error = (written - states).square().mean(2)[frames].mean()
        wanted = durations.clamp(min=1).to(length).log()
        return error + (length - wanted).square()[named].mean()

    def moments(
        self, symbols: Int[Tensor, "row token"]
    ) -> tuple[Float[Tensor, "row token dim"], Float[Tensor, "row token"]]:
        """Return the mean state of each symbol, and the logarithm of its duration."""
        if symbols.numel() and not -1 <= int(symbols.min()) <= int(symbols.max()) < self.n_symbols:
            raise InputError(
                f"StateWriter: expected symbols from 0 to {self.n_symbols - 1}, or -1 for padding, "
                f"got {int(symbols.min())} to {int(symbols.max())}."
            )
        named = (symbols != PADDING).unsqueeze(-1)
        h = self.symbols(symbols.clamp(min=0)) * named
        for mix in self.mixes:
            h = (h + cast(Tensor, mix(h.mT)).mT.relu()) * named
        return self.mean(h), self.length(h).squeeze(-1)

    @torch.no_grad()
    def write(
        self, symbols: Int[Tensor, "row token"], durations: Int[Tensor, "row token"] | None = None
    ) -> tuple[Float[Tensor, "row time dim"], Bool[Tensor, "row time"]]:
        """Return the states of frames, zeros in padding, and which frames are not padding.

        Parameters
        ----------
        symbols : Int[Tensor, "row token"]
            Padded by -1.
        durations : Int[Tensor, "row token"], optional
            Frames of each symbol; by default the predicted ones, rounded, one at least.
        """
        mean, length = self.moments(symbols)
        frames = length.exp().round().clamp(min=1).long() if durations is None else durations
        frames = frames * (symbols != PADDING)
        n = frames.sum(1)
        owner = _owners(frames, int(n.max()) if len(n) else 0)
        real = torch.arange(owner.shape[1], device=owner.device) < n[:, None]
        return mean.gather(1, owner[..., None].expand(-1, -1, self.dim)) * real[..., None], real


@torch.no_grad()
def monotonic_durations(
    cost: Float[Tensor, "row token time"],
    n_tokens: Int[Tensor, "row"] | None = None,
    n_frames: Int[Tensor, "row"] | None = None,
) -> Int[Tensor, "row token"]:
    """Return how many frames each symbol has in the cheapest alignment that keeps the order.

    Each frame belongs to one symbol, each symbol has one frame at least, and later frames belong to
    the same or to later symbols. Found by dynamic programming.

    Parameters
    ----------
    cost : Float[Tensor, "row token time"]
        Cost of giving a frame to a symbol, such as a squared distance.
    n_tokens, n_frames : Int[Tensor, "row"], optional
        Symbols and frames of each row that are not padding; by default all.

    Examples
    --------
    >>> cost = torch.tensor([[[0.0, 0.0, 9.0, 9.0], [9.0, 9.0, 0.0, 0.0]]])
    >>> monotonic_durations(cost).tolist()
    [[2, 2]]

    References
    ----------
    siuzdak2022wavthruvec
    """
    rows, tokens, time = cost.shape
    at = torch.arange(rows, device=cost.device)
    n_tokens = torch.full_like(at, tokens) if n_tokens is None else n_tokens.to(at)
    n_frames = torch.full_like(at, time) if n_frames is None else n_frames.to(at)
    if bool((n_frames < n_tokens).any()) or bool((n_tokens < 1).any()):
        row = int(((n_frames < n_tokens) | (n_tokens < 1)).nonzero()[0, 0])
        raise ShapeError(
            "monotonic_durations: expected a frame or more for each symbol, and a symbol in each "
            f"row, got {int(n_tokens[row])} symbols and {int(n_frames[row])} frames in row {row}."
        )
    best = cost.new_full((rows, tokens), torch.inf, dtype=torch.float64)
    best[:, 0] = cost[:, 0, 0]
    moved = torch.zeros(rows, tokens, time, dtype=torch.bool, device=cost.device)
    for t in range(1, time):
        before = torch.cat([torch.full_like(best[:, :1], torch.inf), best[:, :-1]], 1)
        moved[:, :, t] = before < best
        best = torch.minimum(before, best) + cost[:, :, t]
    durations = torch.zeros(rows, tokens, dtype=torch.long, device=cost.device)
    token = n_tokens - 1
    for t in reversed(range(time)):
        inside = t < n_frames
        durations[at, token] += inside
        token = torch.where(inside & moved[at, token, t], token - 1, token)
    return durations


def _owners(durations: Tensor, time: int) -> Tensor:
    """Return the symbol of each frame; in padding, the last one."""
    ends = durations.cumsum(1)
    frame = torch.arange(time, device=durations.device).expand(len(durations), -1).contiguous()
    return torch.searchsorted(ends, frame, right=True).clamp(max=durations.shape[1] - 1)
