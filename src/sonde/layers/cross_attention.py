"""A second source for the queries of an attention layer, scaled and added to the first."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from sonde.core.errors import InputError, ShapeError
from sonde.core.renaming import renamed
from sonde.layers.conditions import ConditionedLayer


@final
class DecoupledCrossAttention(ConditionedLayer):
    """Let the queries of an attention layer attend to a second source, with its own softmax.

    ``Attention(Q, K, V) + scale Attention(Q, K', V')`` with new ``K' = c W_k'`` and ``V' = c W_v'``
    of the second source ``c``; the queries are shared. Only ``W_k'`` and ``W_v'`` are trained. Each
    source has its own softmax, so that the first source's output stays as it was: ``scale`` can be
    changed after the training, and 0 gives the old model bit for bit. With ``first_scale = 0`` the
    first source is switched off while the second is read: trained so, the new keys and values
    learn all of a picture, without what words say of it. Set the attribute back to 1 afterwards.

    ``sonde.inserted(model, {path: layer})`` puts it into the attention at a path:
    ``nn.MultiheadAttention``, an attention of transformers (over its own text or over an encoder's)
    or a module that calls ``scaled_dot_product_attention``. The model then reads the second source
    inside ``with conditioned(model, source):``; outside it runs as before.

    Cost         one attention over the second source, four tokens in the paper.
    Assumes      queries, keys and values (example, head, token, width), as attention kernels get
                 them.

    Parameters
    ----------
    dim : int
        Width of the second source's tokens.
    n_heads, width : int
        Number of heads of the attention, and width of a head.
    scale : float, default=1.0
        Weight of the second source; 0 gives the old model.
    first_scale : float, default=1.0
        Weight of the first source while a second one is read; 0 switches it off.

    References
    ----------
    ye2023ipadapter, wu2024infiniteid
    """

    paper: ClassVar[str] = "ye2023ipadapter"
    variants: ClassVar[Mapping[str, str]] = {"first_scale=0.0": "wu2024infiniteid"}
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"dim": 4, "n_heads": 2, "width": 3, "scale": 0.7},
        {"dim": 4, "n_heads": 2, "width": 3, "first_scale": 0.0},
    )
    layout: ClassVar[tuple[str, ...]] = (
        "row head token width",
        "row head token width",
        "row source dim",
    )
    insertable = False
    inside_attention = True

    def __init__(
        self,
        dim: int,
        n_heads: int,
        width: int,
        scale: float = 1.0,
        first_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.key = nn.Linear(dim, n_heads * width, bias=False)
        self.value = nn.Linear(dim, n_heads * width, bias=False)
        self.dim, self.head, self.condition = dim, n_heads, dim
        self.n_heads, self.width, self.scale = n_heads, width, scale
        self.first_scale = first_scale

    @property
    def is_active(self) -> bool:
        """True if ``conditioned`` gave a source, and the scale is not 0."""
        return self.scale != 0.0 and self.shared is not None

    @classmethod
    def of(
        cls,
        key: Float[Tensor, "out dim"],
        value: Float[Tensor, "out dim"],
        n_heads: int,
        scale: float = 1.0,
    ) -> "DecoupledCrossAttention":
        """Return a layer that starts from the key and value weights of the first source."""
        if key.shape != value.shape or key.shape[0] % n_heads:
            raise ShapeError(
                "DecoupledCrossAttention: expected key and value weights of one shape, a multiple "
                f"of {n_heads} heads high, got {tuple(key.shape)} and {tuple(value.shape)}."
            )
        new = cls(key.shape[1], n_heads, key.shape[0] // n_heads, scale).to(key)
        with torch.no_grad():
            new.key.weight.copy_(key)
            new.value.weight.copy_(value)
        return new

    def forward(
        self,
        heads: Float[Tensor, "example head token width"],
        queries: Float[Tensor, "example head token width"],
        source: Float[Tensor, "_example source dim"] | None = None,
    ) -> Float[Tensor, "example head token width"]:
        """Return the heads of the first source plus those of the second source.

        Parameters
        ----------
        heads : Float[Tensor, "example head token width"]
            What the attention over the first source gave.
        queries : Float[Tensor, "example head token width"]
        source : Float[Tensor, "_example source dim"], optional
            Tokens of the second source, by default those of ``conditioned``; one example serves
            all. No tokens, or no source, add nothing.
        """
        source = self.shared if source is None else source
        if self.scale == 0.0 or source is None or not source.shape[1]:
            return heads
        if source.ndim != 3 or len(source) not in (1, len(heads)):
            raise ShapeError(
                f"DecoupledCrossAttention: expected a source ({len(heads)} or 1, token, "
                f"{self.dim}), got {tuple(source.shape)}."
            )
        source = source.to(queries.dtype).expand(len(heads), -1, -1)
        keys, values = self._split(self.key(source)), self._split(self.value(source))
        added = scaled_dot_product_attention(queries, keys, values, scale=1 / math.sqrt(self.width))
        first = heads if self.first_scale == 1.0 else self.first_scale * heads
        return first + self.scale * added

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, self.width)).transpose(1, 2)


@renamed(remove="share")
def drop_sources(n: int, remove: float = 0.05, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return masks of training examples that lose the first, and the second, source.

    Each source alone is dropped for ``remove`` of the examples, and both for another ``remove``: a
    model trained in this way can run with either source alone.

    Parameters
    ----------
    n : int
        Examples.
    remove : float, default=0.05
        Fraction of the examples that loses one source, in [0, 1/3]: this fraction loses the first
        source alone, an equal fraction the second alone, and an equal fraction both.
    seed : int, default=0
        Seed of the draws.

    Returns
    -------
    first, second : Bool[Tensor, "example"]

    Examples
    --------
    >>> first, second = drop_sources(1000, seed=1)
    >>> bool((first & second).any()), bool((first & ~second).any())
    (True, True)
    """
    if not 0.0 <= remove <= 1 / 3:
        raise InputError(f"drop_sources: expected a fraction in [0, 1/3], got {remove}.")
    draw = torch.rand(n, generator=torch.Generator().manual_seed(seed))
    both = (draw >= 2 * remove) & (draw < 3 * remove)
    return (draw < remove) | both, ((draw >= remove) & (draw < 2 * remove)) | both


def shuffle_sources(
    group: Int[Tensor, "example"], swap: float = 0.5, seed: int = 0
) -> Int[Tensor, "example"]:
    """Return the example whose source each training example reads: another of its group, or itself.

    With pictures of one subject as a group, a model learns to paint a picture from another picture
    of its subject, so that it cannot copy what only that picture shows.

    Parameters
    ----------
    group : Int[Tensor, "example"]
        Group of each example, such as the subject of its picture.
    swap : float, default=0.5
        Fraction of the examples that read another's source, in [0, 1]; an example that is alone in
        its group keeps its own.
    seed : int, default=0
        Seed of the draws.

    Examples
    --------
    >>> shuffle_sources(torch.tensor([0, 1, 0, 2]), swap=1.0).tolist()
    [2, 1, 0, 3]

    References
    ----------
    yu2024facechainfact
    """
    if not 0.0 <= swap <= 1.0 or group.ndim != 1:
        raise InputError(
            "shuffle_sources: expected a group for each example and a fraction in [0, 1], got "
            f"groups of shape {tuple(group.shape)} and {swap}."
        )
    n, draw = len(group), torch.Generator().manual_seed(seed)
    if not n:
        return torch.arange(0)
    chance = torch.rand(n, n, generator=draw)
    others = (group[:, None] == group[None]).cpu() & ~torch.eye(n, dtype=torch.bool)
    taken = chance.masked_fill(~others, -1.0).argmax(1)
    swapped = (torch.rand(n, generator=draw) < swap) & others.any(1)
    return torch.where(swapped, taken, torch.arange(n)).to(group.device)
