"""Products of states as features: bilinear heads, Gram matrices, spatial and row correlation."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from sonde.core.autocast import without_autocast
from sonde.core.errors import InputError
from sonde.layers._attending import wide_type
from sonde.layers.layer import Layer

TINY = 1e-12
LAYOUTS = {
    "bilinear_heads": ("row dim", "row dim2"),
    "gram": ("row token dim", "row token dim2"),
    "spatial": ("row dim high wide",),
    "pearson": ("row dim", "row dim"),
}


@final
class SecondOrder(Layer):
    """Turn two states, or a map and its shifted self, into products.

    ``bilinear_heads``: ``b + w1.o1 + w2.o2 + sum_h o1_h' W_h o2_h`` for each output, the widths cut
    in ``heads`` parts: (row, n_outputs). ``gram``: ``X' Y / n`` over tokens: (row, dim, dim2),
    optionally with a signed root and unit length. ``spatial``: each channel's correlation with
    itself shifted by each lag (down, right): (row, dim, lag). ``pearson``: each row's loss
    ``(1 - r) / 2``: (row).

    Cost         dim dim2 / heads numbers for each output; products of dim dim2 for ``gram``.
    Assumes      rows, or channels, that are not constant for correlations.

    Parameters
    ----------
    kind : {"bilinear_heads", "gram", "spatial", "pearson"}
        Which product is computed.
    dim, dim2 : int
        Widths of the two states; ``spatial`` uses ``dim`` only, ``pearson`` uses ``dim`` for both.
    heads : int, default=1
        Number of parts in which ``bilinear_heads`` cuts both widths.
    n_outputs : int, default=1
        Number of outputs of ``bilinear_heads``.
    signed_root : bool, default=False
        Take the root of each entry's size in ``gram`` and keep its sign.
    lags : sequence of (int, int), default=((0, 1), (1, 0))
        Not negative.

    References
    ----------
    mao2023finalmlp
    """

    paper: ClassVar[str] = "mao2023finalmlp"
    variants: ClassVar[Mapping[str, str]] = {
        "kind='bilinear_heads'": "mao2023finalmlp",
        "kind='pearson'": "sun2024histoformer",
    }
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"kind": "bilinear_heads", "dim": 4, "dim2": 6, "heads": 2, "n_outputs": 3},
        {"kind": "gram", "dim": 4, "dim2": 3},
        {"kind": "gram", "dim": 4, "dim2": 3, "signed_root": True},
        {"kind": "spatial", "dim": 4, "lags": ((0, 1), (1, 2))},
        {"kind": "pearson", "dim": 4},
    )
    insertable = False

    def __init__(
        self,
        kind: Literal["bilinear_heads", "gram", "spatial", "pearson"],
        dim: int,
        dim2: int | None = None,
        heads: int = 1,
        n_outputs: int = 1,
        signed_root: bool = False,
        lags: Sequence[tuple[int, int]] = ((0, 1), (1, 0)),
    ) -> None:
        super().__init__()
        self.kind, self.dim, self.dim2 = kind, dim, dim2 or dim
        if kind not in LAYOUTS:
            raise InputError(f"SecondOrder: expected a kind of {', '.join(LAYOUTS)}, got {kind!r}.")
        if min(heads, n_outputs) < 1 or self.dim % heads or self.dim2 % heads:
            raise InputError(
                "SecondOrder: expected heads and n_outputs of at least 1, and widths that the "
                f"heads divide, got {heads} heads, {n_outputs} outputs and widths {self.dim} and "
                f"{self.dim2}."
            )
        self.heads, self.signed_root = heads, signed_root
        self.lags = tuple((int(a), int(b)) for a, b in lags)
        object.__setattr__(self, "layout", LAYOUTS[kind])
        self.symmetry = "permutation" if kind == "gram" else "none"
        if kind == "bilinear_heads":
            shape = (n_outputs, heads, dim // heads, self.dim2 // heads)
            self.form = nn.Parameter(torch.randn(shape) / (shape[2] * shape[3]) ** 0.5)
            self.first = nn.Linear(dim, n_outputs)
            self.second = nn.Linear(self.dim2, n_outputs, bias=False)

    def forward(
        self,
        x: Float[Tensor, "row *axes"],
        y: Float[Tensor, "row *axes2"] | None = None,
        mask: Bool[Tensor, "row token"] | None = None,
    ) -> Float[Tensor, "row *out"]:
        """Return the products.

        Parameters
        ----------
        x : Float[Tensor, "row *axes"]
        y : Float[Tensor, "row *axes2"], optional
            The second state, for all kinds but ``spatial``.
        mask : Bool[Tensor, "row token"], optional
            True for real tokens, for ``gram``.
        """
        if self.kind == "spatial":
            return torch.stack([_shifted(x, down, right) for down, right in self.lags], -1)
        if y is None or len(x) != len(y):
            raise InputError(
                f"SecondOrder.forward: expected two states of {len(x)} rows, got "
                f"{'none' if y is None else tuple(y.shape)} as the second."
            )
        if self.kind == "pearson":
            return (1.0 - _correlation(x, y)) / 2.0
        if self.kind == "gram":
            return self._gram(x, y, mask)
        a, b = (v.unflatten(-1, (self.heads, -1)) for v in (x, y))
        products = torch.einsum("rhi,ohij,rhj->ro", a, self.form, b)
        return products + self.first(x) + self.second(y)

    def _gram(self, x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        kind = x.dtype
        x, y = x.to(wide_type(x)), y.to(wide_type(y))  # products of half types overflow
        if mask is not None:
            x = x * mask.unsqueeze(-1)
        n = x.new_tensor(float(x.shape[1])) if mask is None else mask.sum(1).to(x)
        with without_autocast(x.device):
            gram = torch.einsum("rti,rtj->rij", x, y) / n.reshape(-1, 1, 1)
        if not self.signed_root:
            return gram.to(kind)
        rooted = gram / (gram.abs() + TINY).sqrt()
        return normalize(rooted.flatten(1), dim=1).reshape(gram.shape).to(kind)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return the correlation over the last axis, and 0 for a constant row."""
    kind, a, b = a.dtype, a.to(wide_type(a)), b.to(wide_type(b))
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    return ((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)).clamp(min=TINY)).to(kind)


def _shifted(x: Tensor, down: int, right: int) -> Tensor:
    """Return each channel's correlation with its shifted self, over the pairs on the map."""
    high, wide = x.shape[2] - down, x.shape[3] - right
    if min(down, right) < 0 or min(high, wide) < 1 or high * wide < 2:
        raise InputError(
            f"SecondOrder.forward: expected lags for which maps of {tuple(x.shape[2:])} still "
            f"have at least two pairs of positions, got ({down}, {right})."
        )
    here = x[:, :, :high, :wide].flatten(2)
    return _correlation(here, x[:, :, down:, right:].flatten(2))
