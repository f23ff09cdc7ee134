"""Replace states by the nearest codebook entries, with a straight-through gradient."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from sonde.core.autocast import without_autocast
from sonde.core.errors import InputError, ShapeError
from sonde.layers._attending import wide_type
from sonde.layers._recomputing import EarlierStates, is_recomputing
from sonde.layers.layer import Layer, LayerEdit
from sonde.tap.hooks.latest import CopiedLock
from sonde.tap.training.ranks import added_up, rank, rows_by_rank

CHUNK = 4096
LATEST = 4
"""Forward passes whose codes are remembered for gradient checkpointing."""


@final
class VectorQuantizer(Layer):
    """Replace each state by its nearest code, or each unit by its nearest value.

    ``vector``: the sum of the ``k`` nearest of ``n_codes`` codes; with ``stages`` each further
    codebook quantises the residual of the codebooks before. ``scalar``: every unit has its own
    ``n_codes`` values, which start evenly in [-0.5, 0.5]. The output is ``x + strength (q - x)``,
    which passes its gradient to ``x`` unchanged. In training, ``ema`` moves the codes to the mean
    of their rows and replaces a code whose count fell below 1 by a row of the batch; ``gradient``
    trains them by ``loss``; ``fixed`` leaves them.

    Cost         n_codes dim products for each state and stage; memory for 4,096 states at a time.
    Assumes      weight decay on the networks around it, not on the codes.
    Differs      from QLAE: nothing in this layer decays weights; the method needs 0.1 on both nets.

    Parameters
    ----------
    dim : int
        Width of the states.
    n_codes : int, default=256
        Number of codes, or of values of each unit.
    kind : {"vector", "scalar"}, default="vector"
        Whether whole states (``vector``) or single units (``scalar``) are replaced.
    k : int, default=1
        Nearest codes that are summed.
    stages : int, default=1
        Residual codebooks.
    metric : {"euclidean", "cosine"}, default="euclidean"
        Distance by which the nearest code is found.
    update : {"ema", "gradient", "fixed"}, optional
        By default ``ema`` for vectors and ``gradient`` for scalars.
    decay : float, default=0.99
        Weight of the past in the running means of ``ema``, in [0, 1).
    commitment : float, default=0.25
        Weight of the states' distance from their codes in ``loss``.
    revive : bool, default=True
        Replace a code whose count fell below 1 by a row of the batch.
    strength : float, default=1.0
        Pass 0 for a layer to be inserted: the layer gives back its input bit for bit.
    seed : int, default=0
        Seed of the first codes and of the rows that replace codes.

    References
    ----------
    vandenoord2017vqvae
    """

    paper: ClassVar[str] = "vandenoord2017vqvae"
    variants: ClassVar[Mapping[str, str]] = {"kind='scalar'": "hsu2023qlae"}
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"dim": 4, "n_codes": 5},
        {"dim": 4, "n_codes": 5, "k": 2, "metric": "cosine", "update": "gradient"},
        {"dim": 4, "n_codes": 5, "stages": 3, "strength": 0.0},
        {"dim": 4, "n_codes": 3, "kind": "scalar"},
    )
    layout: ClassVar[tuple[str, ...]] = ("*axes dim",)
    exact_gradient = False
    bfloat16_safe = False  # a rounded state may have another nearest code
    counts: Tensor
    steps: Tensor

    def __init__(
        self,
        dim: int,
        n_codes: int = 256,
        kind: Literal["vector", "scalar"] = "vector",
        k: int = 1,
        stages: int = 1,
        metric: Literal["euclidean", "cosine"] = "euclidean",
        update: Literal["ema", "gradient", "fixed"] | None = None,
        decay: float = 0.99,
        commitment: float = 0.25,
        revive: bool = True,
        strength: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        scalar = kind == "scalar"
        if not 1 <= k <= n_codes or stages < 1 or (scalar and (k, stages) != (1, 1)):
            raise InputError(
                f"VectorQuantizer: expected 1 to {n_codes} nearest codes and stages of vectors, "
                f"got k={k} and stages={stages} of kind {kind!r}."
            )
        self.dim, self.kind, self.k, self.metric = dim, kind, k, metric
        self.update = update or ("gradient" if scalar else "ema")
        if scalar and self.update == "ema":
            raise InputError(
                "VectorQuantizer: expected update='gradient' or 'fixed' for kind='scalar'."
            )
        self.decay, self.commitment, self.revive = decay, commitment, revive
        self.strength, self.seed, self.insertable = strength, seed, strength == 0.0
        generator = torch.Generator().manual_seed(seed)
        codes = torch.randn(stages, n_codes, dim, generator=generator)
        if scalar:
            codes = torch.linspace(-0.5, 0.5, n_codes)[None, :, None].repeat(1, 1, dim)
        self.codes = nn.Parameter(codes, requires_grad=self.update == "gradient")
        self.register_buffer("counts", torch.ones(stages, n_codes))
        self.earlier, self._turn = EarlierStates(LATEST), CopiedLock()
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    @classmethod
    def of(cls, codes: Float[Tensor, "code dim"], **parameters: Any) -> "VectorQuantizer":
        """Return a layer with given, fixed codes, such as the means of clusters.

        Parameters
        ----------
        codes : Float[Tensor, "code dim"]
        **parameters
            Those of the class.
        """
        new = cls(codes.shape[1], len(codes), **{"update": "fixed", **parameters}).to(codes)
        with torch.no_grad():
            new.codes.copy_(codes)
        return new

    def forward(
        self, x: Float[Tensor, "*axes dim"], mask: Bool[Tensor, "*axes"] | None = None
    ) -> Float[Tensor, "*axes dim"]:
        """Return the quantised states; training may update the codes.

        Parameters
        ----------
        x : Float[Tensor, "*axes dim"]
        mask : Bool[Tensor, "*axes"], optional
            True for the states that may move the codes.
        """
        if self.strength == 0.0:
            return x
        follows = self.training and self.update == "ema"
        q = self._followed(x, mask) if follows else self.decode(self.encode(x))
        mixed = q.to(x.dtype) if self.strength == 1.0 else x + self.strength * (q - x)
        return mixed.detach() + (x - x.detach())  # the value alone, and the gradient of x

    @torch.no_grad()
    def _followed(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return the quantised states, and update the codes unless the pass is a recomputation."""
        if is_recomputing():
            codes = self.earlier.of(x, "VectorQuantizer")
            return self._sums(self._numbers(x, codes), codes)
        with self._turn:  # another thread would move the codes meanwhile
            codes = self.codes.detach().clone()
            numbers = self._numbers(x, codes)
            self._follow(x.detach(), numbers, mask)
        self.earlier.keep(x, codes)
        return self._sums(numbers, codes)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "*axes dim"]) -> Int[Tensor, "*axes code"]:
        """Return the indices of the codes: k for each stage, or one for each unit."""
        return self._numbers(x, self.codes)

    def _numbers(self, x: Tensor, codes: Tensor) -> Tensor:
        wide = wide_type(x)  # a rounded distance may choose another code
        rest, nearest, codes = x.reshape(-1, self.dim).to(wide), [], codes.to(wide)
        if self.kind == "scalar":
            parts = [(p.unsqueeze(1) - codes[0]).abs().argmin(1) for p in rest.split(CHUNK)]
            return torch.cat(parts).reshape(x.shape)
        for one in codes:
            with without_autocast(x.device):
                near = torch.cat([self._nearest(part, one) for part in rest.split(CHUNK)])
            rest = rest - one[near].sum(1)
            nearest.append(near)
        return torch.cat(nearest, -1).reshape(*x.shape[:-1], len(codes) * self.k)

    def decode(self, codes: Int[Tensor, "*axes code"]) -> Float[Tensor, "*axes dim"]:
        """Return the states of code indices."""
        expected = self.dim if self.kind == "scalar" else len(self.codes) * self.k
        too_high = bool((codes >= self.codes.shape[1]).any())
        if codes.shape[-1] != expected or too_high:
            raise ShapeError(
                f"VectorQuantizer.decode: expected {expected} numbers below {self.codes.shape[1]} "
                f"for each state, got {codes.shape[-1]} up to {int(codes.max())}. Pass what encode "
                "returned."
            )
        return self._sums(codes, self.codes)

    def _sums(self, numbers: Tensor, codes: Tensor) -> Tensor:
        if self.kind == "scalar":
            return codes[0][numbers, torch.arange(self.dim, device=codes.device)]
        stage = torch.arange(len(codes), device=codes.device).repeat_interleave(self.k)
        return codes[stage, numbers].sum(-2)

    def loss(self, x: Float[Tensor, "*axes dim"]) -> Float[Tensor, ""]:
        """Return the penalty on the states' distance to their codes, to add to a loss.

        ``commitment mean |x - sg(q)|^2``, and ``mean |sg(x) - q|^2`` if gradients train the codes.
        """
        q = self.decode(self.encode(x))
        loss = self.commitment * (x - q.detach()).square().mean()
        return loss + (x.detach() - q).square().mean() if self.update == "gradient" else loss

    @torch.no_grad()
    def usage(self, x: Float[Tensor, "*axes dim"]) -> dict[str, float]:
        """Return code perplexity, fraction of unused codes, bits per state and squared error.

        Perplexity and unused codes are means over stages, or over units.
        """
        codes, n = self.encode(x).reshape(-1, 1), self.codes.shape[1]
        codes = codes.reshape(x.numel() // self.dim, -1)
        groups = codes if self.kind == "scalar" else codes.reshape(len(codes), -1, self.k)
        groups = groups.transpose(0, 1).reshape(groups.shape[1], -1)
        shares = torch.stack([torch.bincount(g, minlength=n) for g in groups]).double()
        shares = shares / shares.sum(1, keepdim=True)
        entropy = -torch.special.xlogy(shares, shares).sum(1)
        error = (self.decode(self.encode(x)) - x).square().mean()
        return {
            "perplexity": float(entropy.exp().mean()),
            "dead": float((shares == 0).double().mean()),
            "bits": codes.shape[1] * float(torch.tensor(float(n)).log2()),
            "mse": float(error),
        }

    def as_edit(self, strength: float = 1.0) -> LayerEdit:
        """Return an edit that mixes states with their codes.

        Parameters
        ----------
        strength : float, default=1.0
            0 gives back the same tensor.
        """
        return LayerEdit(self, strength)

    def _nearest(self, rows: Tensor, codes: Tensor) -> Tensor:
        if self.metric == "cosine":
            return (normalize(rows, dim=-1) @ normalize(codes, dim=-1).T).topk(self.k).indices
        score = torch.addmm(-0.5 * codes.square().sum(1), rows, codes.T)
        return score.argmax(1, keepdim=True) if self.k == 1 else score.topk(self.k).indices

    @torch.no_grad()
    def _follow(self, x: Tensor, numbers: Tensor, mask: Tensor | None) -> None:
        """Update each code to the mean of its rows; replace unused codes by batch rows.

        Processes that train together move the codes to the mean of the rows of all of them.
        """
        rest, numbers = x.reshape(-1, self.dim), numbers.reshape(-1, len(self.codes), self.k)
        rest = rest.to(wide_type(x))
        if mask is not None:
            rest, numbers = rest[mask.reshape(-1)], numbers[mask.reshape(-1)]
        generator = torch.Generator().manual_seed(self.seed + int(self.steps))
        self.steps += 1
        held = rows_by_rank(len(rest), rest.device)
        for stage in range(len(self.codes) if sum(held) else 0):
            codes, near = self.codes[stage].to(rest, copy=True), numbers[:, stage]
            others = codes[near].sum(1, keepdim=True) - codes[near]
            wanted = (rest.unsqueeze(1) - others).reshape(-1, self.dim)
            n = torch.bincount(near.reshape(-1), minlength=len(codes)).to(rest)
            sums = torch.zeros_like(codes).index_add_(0, near.reshape(-1), wanted)
            n, sums = added_up(n), added_up(sums)
            old, new = self.decay * self.counts[stage].to(rest), (1.0 - self.decay)
            total = old + new * n
            moved = (old.unsqueeze(1) * codes + new * sums) / total.clamp(min=1e-5).unsqueeze(1)
            dead = (total < 1.0) & (n == 0)
            if self.revive and bool(dead.any()):
                drawn = torch.randint(sum(held), (int(dead.sum()),), generator=generator)
                moved[dead], total = _rows_at(rest, drawn, held), total.masked_fill(dead, 1.0)
            self.codes[stage], self.counts[stage] = moved.to(self.codes), total.to(self.counts)
            rest = rest - codes[near].sum(1)


def _rows_at(rows: Tensor, numbers: Tensor, held: list[int]) -> Tensor:
    """Return rows by their indices among the rows of all processes, in rank order."""
    number = numbers.to(rows.device) - sum(held[: rank()])
    held_here = (number >= 0) & (number < len(rows))
    taken = rows.new_zeros(len(numbers), rows.shape[1])
    taken[held_here] = rows[number[held_here]]
    return added_up(taken)
