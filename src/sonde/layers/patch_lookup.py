"""Look up an image's patches among those of other images, through maps that learn to miss defects.

Trained on images of some kinds, it serves a dictionary of another kind. For patches as they are, or
maps that see a patch alone and are fitted by one command, take ``sonde.detect.DictLookup``.
"""

from typing import Any, ClassVar, cast, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, normalize, scaled_dot_product_attention

from sonde.core.errors import InputError
from sonde.layers.layer import Layer
from sonde.stats.sparsemax import sparsemax


@final
class PatchLookup(Layer):
    """Misfit of each patch with a sparse mean of the patches that are like it in other images.

    ``r = sum_i w_i v(s_i)`` with ``w = sparsemax(q(x) . k(s_i) / temperature)`` over the patches
    ``s_i`` of the dictionary's images, and the misfit ``(1 - cos(v(x), r)) / 2``. The generators
    ``q``, ``k`` and ``v`` add one hidden layer to a patch of unit length, with ``heads`` after an
    attention among the patches of its image; their last maps start at 0, so an untrained lookup
    compares patches as they are. Train them on usual images and on copies with strange patches:
    ``query_loss`` makes strange patches hard to retrieve, and ``text_loss`` asks that what is
    retrieved for an image is described by the text of usual images, strange patches or not.

    Range        [0, 1]; higher = more unusual.
    Cost         ``patch entries`` products of ``dim`` an image, three maps of ``2 dim hidden``.
    Assumes      texts and patches in one space, such as a CLIP's, for ``text_loss``.
    Differs      from DictAS: one block in each generator; both losses follow the abstract, which
                 has no formulas.

    Parameters
    ----------
    dim : int
        Width of the patches.
    hidden : int, default=64
        Units of each generator's hidden layer.
    heads : int, default=0
        Heads of the attention in each generator; 0: a generator sees a patch alone.
    patches : int, default=0
        Patches of an image, for learned positions in the attention; 0: none.
    temperature : float, default=0.05
        What cosines are divided by; small: only the most similar patches count.

    Examples
    --------
    >>> x, bank = torch.eye(3)[None], torch.eye(3)[None, None, :2]
    >>> [round(v, 3) for v in PatchLookup(3)(x, bank)[0].tolist()]
    [0.0, 0.0, 0.5]

    References
    ----------
    dictas2025, martins2016sparsemax
    """

    paper: ClassVar[str] = "dictas2025"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"dim": 4, "hidden": 5},
        {"dim": 4, "hidden": 5, "heads": 2, "patches": 3, "temperature": 0.1},
    )
    layout: ClassVar[tuple[str, ...]] = ("row patch dim", "row image patch dim")
    insertable = False
    bfloat16_safe = False
    """A patch that is close to one of the dictionary: one minus a cosine near 1."""

    def __init__(
        self,
        dim: int,
        hidden: int = 64,
        heads: int = 0,
        patches: int = 0,
        temperature: float = 0.05,
    ) -> None:
        super().__init__()
        if min(dim, hidden) < 1 or temperature <= 0 or heads < 0 or (heads and dim % heads):
            raise InputError(
                "PatchLookup: expected widths of at least 1, a temperature above 0 and heads that "
                f"divide dim={dim}, got hidden={hidden}, temperature={temperature} and "
                f"heads={heads}."
            )
        if patches and not heads:
            raise InputError("PatchLookup: patches are only used with heads.")
        self.dim, self.temperature = dim, temperature
        if patches:
            self.patch = patches
        names = ("query", "key", "value")
        self.maps = nn.ModuleDict({n: _Generator(dim, hidden, heads, patches) for n in names})

    def forward(
        self,
        x: Float[Tensor, "row patch dim"],
        bank: Float[Tensor, "row2 image patch2 dim"],
    ) -> Float[Tensor, "row patch"]:
        """Return the misfit of each patch.

        Parameters
        ----------
        x : Float[Tensor, "row patch dim"]
        bank : Float[Tensor, "row2 image patch2 dim"]
            The images of each row's dictionary; one row serves all.
        """
        return (1 - (self._map("value", x) * self.retrieved(x, bank)).sum(2)) / 2

    def retrieved(
        self,
        x: Float[Tensor, "row patch dim"],
        bank: Float[Tensor, "row2 image patch2 dim"],
    ) -> Float[Tensor, "row patch dim"]:
        """Return what each patch retrieves, of unit length."""
        keys, values = (
            self._map(n, bank.flatten(0, 1)).unflatten(0, bank.shape[:2]).flatten(1, 2)
            for n in ("key", "value")
        )
        z = self._map("query", x) @ keys.mT / self.temperature
        return normalize(sparsemax(z.flatten(0, 1)).unflatten(0, z.shape[:2]) @ values, dim=2)

    def query_loss(
        self,
        x: Float[Tensor, "row patch dim"],
        fake: Float[Tensor, "row patch dim"],
        changed: Bool[Tensor, "row patch"],
        bank: Float[Tensor, "row2 image patch2 dim"],
        margin: float = 0.25,
        weight: float = 0.1,
    ) -> Float[Tensor, ""]:
        """Return twice the misfit of usual patches, plus a hinge on that of changed patches.

        Parameters
        ----------
        x, fake : Float[Tensor, "row patch dim"]
            Usual images, and copies with changed patches.
        changed : Bool[Tensor, "row patch"]
            Which patches of ``fake`` are changed.
        bank : Float[Tensor, "row2 image patch2 dim"]
            Images of the same kind.
        margin, weight : float
            Changed patches are to have a misfit larger than the mean of usual ones by ``margin``;
            the weight is that of this term.
        """
        usual, odd = self(x, bank).mean(), self(fake, bank)[changed]
        return 2 * usual + 2 * weight * (margin + usual - odd).clamp(min=0).mean()

    def text_loss(
        self,
        x: Float[Tensor, "row patch dim"],
        bank: Float[Tensor, "row2 image patch2 dim"],
        texts: Float[Tensor, "text dim"],
        described: Int[Tensor, "row"],
        temperature: float = 0.07,
    ) -> Float[Tensor, ""]:
        """Return the cross-entropy of naming, by what an image retrieves, the text of its kind.

        Parameters
        ----------
        x : Float[Tensor, "row patch dim"]
            Usual images, or copies with changed patches.
        bank : Float[Tensor, "row2 image patch2 dim"]
            Usual images of the same kind.
        texts : Float[Tensor, "text dim"]
            Embeddings of texts, such as "a usual shoe" and "a damaged shoe".
        described : Int[Tensor, "row"]
            The text of usual images of the row's kind.
        temperature : float, default=0.07
            What cosines are divided by.
        """
        image = normalize(self.retrieved(x, bank).mean(1), dim=1)
        return cross_entropy(image @ normalize(texts, dim=1).T / temperature, described)

    def _map(self, name: str, x: Tensor) -> Tensor:
        return cast(_Generator, self.maps[name])(normalize(x, dim=-1))


class _Generator(nn.Module):
    """A residual map of patches of unit length."""

    def __init__(self, dim: int, hidden: int, heads: int, patches: int) -> None:
        super().__init__()
        self.heads = heads
        self.first = nn.Linear(dim, hidden, bias=False)
        self.second = nn.Linear(hidden, dim, bias=False)
        nn.init.zeros_(self.second.weight)
        self.place = nn.Parameter(torch.zeros(patches, dim)) if patches else None
        if heads:
            self.into = nn.Linear(dim, 3 * dim, bias=False)
            self.out = nn.Linear(dim, dim, bias=False)
            nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        wide = x * x.shape[-1] ** 0.5
        if self.heads:
            placed = wide if self.place is None else wide + self.place
            split = self.into(placed).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            mixed = scaled_dot_product_attention(split[0], split[1], split[2])
            wide = wide + self.out(mixed.transpose(1, 2).flatten(2))
        return normalize(wide + self.second(gelu(self.first(wide))), dim=-1)
