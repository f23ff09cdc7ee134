"""Replace states by the nearest entries of a codebook, with a gradient straight through."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from sonde.core.errors import InputError, ShapeError
from sonde.layers.layer import Layer, LayerEdit

CHUNK = 4096


@final
class VectorQuantizer(Layer):
    """Replace each state by its nearest code, or each of its units by the unit's nearest value.

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
    n_codes : int, default=256
    kind : {"vector", "scalar"}, default="vector"
    k : int, default=1
        Nearest codes that are summed.
    stages : int, default=1
        Residual codebooks.
    metric : {"euclidean", "cosine"}, default="euclidean"
    update : {"ema", "gradient", "fixed"}, optional
        By default ``ema`` for vectors and ``gradient`` for scalars.
    decay : float, default=0.99
    commitment : float, default=0.25
    revive : bool, default=True
    strength : float, default=1.0
        Pass 0 for a layer to be inserted: the layer gives back its input bit for bit.
    seed : int, default=0

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
            raise InputError("VectorQuantizer: expected update 'gradient' or 'fixed' for scalars.")
        self.decay, self.commitment, self.revive = decay, commitment, revive
        self.strength, self.seed, self.insertable = strength, seed, strength == 0.0
        generator = torch.Generator().manual_seed(seed)
        codes = torch.randn(stages, n_codes, dim, generator=generator)
        if scalar:
            codes = torch.linspace(-0.5, 0.5, n_codes)[None, :, None].repeat(1, 1, dim)
        self.codes = nn.Parameter(codes, requires_grad=self.update == "gradient")
        self.register_buffer("counts", torch.ones(stages, n_codes))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    @classmethod
    def of(cls, codes: Float[Tensor, "code dim"], **parameters: Any) -> "VectorQuantizer":
        """Return a layer with given codes, e.g. the means of clusters, which stay as they are.

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
        """Return the quantised states; in training the codes may move.

        Parameters
        ----------
        x : Float[Tensor, "*axes dim"]
        mask : Bool[Tensor, "*axes"], optional
            True for the states that may move the codes.
        """
        if self.strength == 0.0:
            return x
        codes = self.encode(x)
        q = self.decode(codes)
        if self.training and self.update == "ema":
            self._follow(x.detach(), codes, mask)
        return x + self.strength * (q - x).detach()

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "*axes dim"]) -> Int[Tensor, "*axes code"]:
        """Return the numbers of the codes: k for each stage, or one for each unit."""
        rest, found = x.reshape(-1, self.dim), []
        if self.kind == "scalar":
            parts = [self._near_values(part) for part in rest.split(CHUNK)]
            return torch.cat(parts).reshape(x.shape)
        for codes in self.codes:
            near = torch.cat([self._nearest(part, codes) for part in rest.split(CHUNK)])
            rest = rest - codes[near].sum(1)
            found.append(near)
        return torch.cat(found, -1).reshape(*x.shape[:-1], len(self.codes) * self.k)

    def decode(self, codes: Int[Tensor, "*axes code"]) -> Float[Tensor, "*axes dim"]:
        """Return the states that the numbers of codes stand for."""
        expected = self.dim if self.kind == "scalar" else len(self.codes) * self.k
        too_high = bool((codes >= self.codes.shape[1]).any())
        if codes.shape[-1] != expected or too_high:
            raise ShapeError(
                f"VectorQuantizer.decode: expected {expected} numbers below {self.codes.shape[1]} "
                f"for each state, got {codes.shape[-1]} up to {int(codes.max())}. Pass what encode "
                "returned."
            )
        if self.kind == "scalar":
            return self.codes[0][codes, torch.arange(self.dim, device=codes.device)]
        stage = torch.arange(len(self.codes), device=codes.device).repeat_interleave(self.k)
        return self.codes[stage, codes].sum(-2)

    def loss(self, x: Float[Tensor, "*axes dim"]) -> Float[Tensor, ""]:
        """Return the penalty of the states' distance to their codes, to be added to a loss.

        ``commitment mean |x - sg(q)|^2``, and ``mean |sg(x) - q|^2`` if gradients train the codes.
        """
        q = self.decode(self.encode(x))
        loss = self.commitment * (x - q.detach()).square().mean()
        return loss + (x.detach() - q).square().mean() if self.update == "gradient" else loss

    @torch.no_grad()
    def usage(self, x: Float[Tensor, "*axes dim"]) -> dict[str, float]:
        """Return perplexity of the codes, share of unused codes, bits of a state and squared error.

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

    def _near_values(self, rows: Tensor) -> Tensor:
        return (rows.unsqueeze(1) - self.codes[0]).abs().argmin(1)

    @torch.no_grad()
    def _follow(self, x: Tensor, numbers: Tensor, mask: Tensor | None) -> None:
        """Move every code to the mean of its rows; replace unused codes by rows of the batch."""
        rest, numbers = x.reshape(-1, self.dim), numbers.reshape(-1, len(self.codes), self.k)
        if mask is not None:
            rest, numbers = rest[mask.reshape(-1)], numbers[mask.reshape(-1)]
        generator = torch.Generator().manual_seed(self.seed + int(self.steps))
        self.steps += 1
        for stage in range(len(self.codes) if len(rest) else 0):
            codes, near = self.codes[stage].clone(), numbers[:, stage]
            others = codes[near].sum(1, keepdim=True) - codes[near]
            wanted = (rest.unsqueeze(1) - others).reshape(-1, self.dim)
            n = torch.bincount(near.reshape(-1), minlength=len(codes)).to(rest)
            sums = torch.zeros_like(codes).index_add_(0, near.reshape(-1), wanted)
            old, new = self.decay * self.counts[stage], (1.0 - self.decay)
            total = old + new * n
            moved = (old.unsqueeze(1) * codes + new * sums) / total.clamp(min=1e-5).unsqueeze(1)
            self.codes[stage], self.counts[stage] = moved, total
            dead = (total < 1.0) & (n == 0)
            if self.revive and bool(dead.any()):
                drawn = torch.randint(len(rest), (int(dead.sum()),), generator=generator)
                self.codes[stage, dead], self.counts[stage, dead] = rest[drawn.to(rest.device)], 1.0
            rest = rest - codes[near].sum(1)
