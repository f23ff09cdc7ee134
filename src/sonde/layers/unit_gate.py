"""Multiply units, fields, tokens or channels by gates: learned, fixed, conditioned or scored."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sonde.core.errors import InputError, ShapeError
from sonde.layers.conditions import ConditionedLayer
from sonde.stats.soft_top_k import soft_top_k

SCORES = {
    "units": ("learned", "fixed", "conditioned"),
    "fields": ("learned", "fixed", "conditioned"),
    "tokens": ("top_k", "class_attention"),
    "channels+space": ("pooled", "spatial", "both"),
}


@final
class UnitGate(ConditionedLayer):
    """Multiply states by gates, ``y = g * x``; most gates start at ``g = 1``.

    ``learned`` sharpens: ``g = sigmoid(c tau) / sigmoid(c_0)`` with ``tau = gamma^progress``; move
    ``progress`` from 0 to 1 in training, then ``harden()`` leaves ``1[c > 0]``. ``fixed`` is
    ``kappa^-i``. ``conditioned`` is ``2 sigmoid(MLP(condition))``, whose last map starts at zero.
    ``top_k`` keeps the tokens of highest linear score. ``class_attention`` multiplies a token by
    ``1 + a`` if its attention ``a`` is at or above a quantile, else by ``1 - a``. ``pooled`` gates
    channels by a network of the channels' means, ``spatial`` gates places by a 7 x 7 convolution of
    the mean and maximum over channels.

    Cost         one product for each entry; the networks of the scores.
    Assumes      no batch norm behind it, which would undo the gates of units.
    Differs      from OptFS: a hard gate is 1, not ``1 / sigmoid(c_0)``.

    Parameters
    ----------
    dim : int
        Width of the states.
    over : {"units", "fields", "tokens", "channels+space"}, default="units"
        What a gate multiplies.
    score : str, optional
        By default the first that ``over`` knows: ``learned fixed conditioned`` for units and
        fields, ``top_k class_attention`` for tokens, ``pooled spatial both`` for channels+space.
    fields : sequence of int, optional
        Sizes of the groups of units for ``over="fields"``; they sum to ``dim``.
    initial : float, default=0.1
        ``c_0`` of a learned gate.
    gamma : float, default=5000.0
        Last sharpness of a learned gate.
    kappa : float, default=2.0
        Base of the powers of a ``fixed`` gate, above 0.
    condition : int, default=0
        Width of the condition; 0 learns a constant in its place.
    k : int, default=1
        Tokens that ``top_k`` keeps.
    alpha : float, default=1.0
        Sharpness of the gradient of ``top_k``.
    quantile : float, default=0.5
        Quantile of the attention above which ``class_attention`` strengthens a token, in [0, 1].

    References
    ----------
    lyu2023optfs
    """

    paper: ClassVar[str] = "lyu2023optfs"
    variants: ClassVar[Mapping[str, str]] = {
        "over='fields'": "lyu2023optfs",
        "score='fixed'": "xue2024projection",
        "score='conditioned'": "mao2023finalmlp",
        "over='tokens', score='class_attention'": "doei2025",
    }
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"dim": 4},
        {"dim": 5, "over": "fields", "fields": (2, 3)},
        {"dim": 4, "score": "fixed", "kappa": 1.5},
        {"dim": 4, "score": "conditioned"},
        {"dim": 4, "score": "conditioned", "condition": 3},
        {"dim": 4, "over": "tokens", "k": 2},
        {"dim": 4, "over": "tokens", "score": "class_attention"},
        {"dim": 4, "over": "channels+space"},
        {"dim": 4, "over": "channels+space", "score": "both"},
    )
    layout: ClassVar[tuple[str, ...]] = ("row *axes dim",)
    sizes: Tensor
    powers: Tensor
    start: Tensor
    progress: Tensor
    is_hard: Tensor

    def __init__(
        self,
        dim: int,
        over: Literal["units", "fields", "tokens", "channels+space"] = "units",
        score: str | None = None,
        fields: Sequence[int] | None = None,
        initial: float = 0.1,
        gamma: float = 5000.0,
        kappa: float = 2.0,
        condition: int = 0,
        k: int = 1,
        alpha: float = 1.0,
        quantile: float = 0.5,
    ) -> None:
        super().__init__()
        scores = SCORES.get(over, ())
        score = score or (scores[0] if scores else "")
        if score not in scores:
            raise InputError(
                f"UnitGate: expected over and score as one of the pairs {SCORES}, got "
                f"{over!r} and {score!r}."
            )
        sizes = list(fields or ()) if over == "fields" else [1] * dim
        if sum(sizes) != dim or min(sizes, default=0) < 1:
            raise InputError(
                f"UnitGate: expected fields of 1 unit or more that sum to {dim}, got "
                f"{fields if over == 'fields' else f'{dim} units'}."
            )
        self.dim, self.over, self.score, self.k, self.alpha = dim, over, score, k, alpha
        self.initial, self.gamma, self.quantile = initial, gamma, quantile
        self.condition = condition if score == "conditioned" else 0
        self.insertable = score not in ("fixed", "top_k", "class_attention")
        self.exact_gradient = score != "top_k"
        self.register_buffer("sizes", torch.tensor(sizes), persistent=False)
        # rounded whenever the gates are, so that they start at exactly 1 in every type
        self.register_buffer("start", torch.tensor(initial), persistent=False)
        self.register_buffer("progress", torch.zeros(()))
        self.register_buffer("is_hard", torch.zeros((), dtype=torch.bool))
        self._make(len(sizes), kappa)

    def _make(self, n: int, kappa: float) -> None:
        """Create the parameters of the score."""
        if self.score == "learned":
            self.c = nn.Parameter(self.start.expand(n).clone())
        elif self.score == "fixed":
            self.register_buffer(
                "powers", kappa ** -torch.arange(n, dtype=torch.get_default_dtype())
            )
        elif self.score == "conditioned":
            wide = self.condition or n
            self.constant = None if self.condition else nn.Parameter(torch.zeros(1, n))
            self.net = nn.Sequential(nn.Linear(wide, n), nn.GELU(), _zero(nn.Linear(n, n)))
        elif self.over == "tokens":
            words = "row token dim"
            more = () if self.score == "top_k" else ("row token",)
            object.__setattr__(self, "layout", (words, *more))
            self.symmetry = "permutation"
            self.line = nn.Linear(self.dim, 1, bias=False) if self.score == "top_k" else None
        else:
            object.__setattr__(self, "layout", ("row dim high wide",))
            narrow = max(1, self.dim // 2)
            squeeze = (nn.Linear(self.dim, narrow), nn.ReLU(), _zero(nn.Linear(narrow, self.dim)))
            self.squeeze = None if self.score == "spatial" else nn.Sequential(*squeeze)
            space = _zero(nn.Conv2d(2, 1, 7, padding=3))
            self.space = None if self.score == "pooled" else space

    def forward(
        self,
        x: Float[Tensor, "row *axes"],
        condition: Tensor | None = None,
        mask: Bool[Tensor, "row token"] | None = None,
    ) -> Float[Tensor, "row *axes"]:
        """Return the gated states.

        Parameters
        ----------
        x : Float[Tensor, "row *axes"]
        condition : Tensor, optional
            For ``class_attention`` the attention of the class to each token, mean over heads.
        mask : Bool[Tensor, "row token"], optional
            True for real tokens; gates of tokens use it.
        """
        if self.over == "tokens":
            return x * self._of_tokens(x, condition, mask).unsqueeze(-1)
        if self.over == "channels+space":
            return x * self._of_maps(x)
        gate = self._of_units(x, condition)
        gate = gate if self.over == "units" else gate.repeat_interleave(self.sizes, -1)
        return x * gate.to(x.dtype)

    def gates(self) -> Float[Tensor, "gate"]:
        """Return the gates that do not depend on states: one for each unit or field."""
        if self.score == "fixed":
            return self.powers
        if self.score != "learned":
            raise InputError(
                f"UnitGate.gates: with score={self.score!r} the gates depend on the states, "
                "so there are no fixed gates to return. Call the layer."
            )
        if self.is_hard:
            return (self.c > 0).to(self.c.dtype)
        tau = self.gamma ** self.progress.to(self.c.dtype)
        return torch.sigmoid(self.c * tau) / torch.sigmoid(self.start.expand_as(self.c).clone())

    def pair_gates(self) -> Float[Tensor, "gate gate"]:
        """Return the gate of each pair: the product of the two gates."""
        return self.gates().unsqueeze(0) * self.gates().unsqueeze(1)

    def harden(self) -> None:
        """End the continuation: gates become 1 for ``c > 0``, else 0."""
        self.is_hard.fill_(True)

    def _of_units(self, x: Tensor, condition: Tensor | None) -> Tensor:
        if self.score != "conditioned":
            return self.gates()
        c = self.condition_for(x, condition, x.ndim - 2) if self.condition else self.constant
        if c is None:
            return x.new_ones(len(self.sizes))
        return 2.0 * torch.sigmoid(self.net(c))

    def _of_tokens(self, x: Tensor, attention: Tensor | None, mask: Tensor | None) -> Tensor:
        if self.line is not None:
            scores = self.line(x).squeeze(-1)
            scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
            return soft_top_k(scores, self.k, self.alpha, hard=True)
        if attention is None:
            raise InputError("UnitGate.forward: expected the attention (row token), got none.")
        if attention.shape != x.shape[:2]:
            raise ShapeError(
                f"UnitGate.forward: expected attention of shape {tuple(x.shape[:2])}, like the "
                f"states, got {tuple(attention.shape)}."
            )
        if not attention.numel():
            return attention
        weights = attention.detach().double()
        weights = weights if mask is None else weights.masked_fill(~mask, torch.nan)
        sure = weights >= weights.nanquantile(self.quantile, dim=-1, keepdim=True)
        return torch.where(sure, 1.0 + attention, 1.0 - attention)

    def _of_maps(self, x: Tensor) -> Tensor:
        gate = x.new_ones(())
        if self.squeeze is not None:
            gate = gate * 2.0 * torch.sigmoid(self.squeeze(x.mean((2, 3))))[:, :, None, None]
        if self.space is not None:
            seen = torch.stack((x.mean(1), x.amax(1)), dim=1)
            gate = gate * 2.0 * torch.sigmoid(self.space(seen))
        return gate


def _zero(layer: Any) -> Any:
    """Return a linear layer whose weights and bias are zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
