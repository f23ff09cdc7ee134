"""Scenes of a digit among faint pieces of others, and descriptions of digits by their strokes."""

from dataclasses import dataclass
from typing import final

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde_studies._recipe_data import shuffled_digits

STROKES = ("abcdef", "bc", "abdeg", "abcdg", "bcfg", "acdfg", "acdefg", "abc", "abcdefg", "abcdfg")
"""Of a display of seven segments: a on top, then clockwise to f, and g in the middle."""
QUARTERS = {"a": (0, 1), "b": (1,), "c": (3,), "d": (2, 3), "e": (2,), "f": (0,), "g": (0, 1, 2, 3)}
"""Of a digit, line by line: where each stroke lies."""
FAINT = 0.5
"""Ink of the pieces, of that of the digit."""


@final
@dataclass(frozen=True)
class DescribedDigits:
    """Scenes of four by four patches, where their digits are, and strokes of each class.

    Parameters
    ----------
    patches : Float[Tensor, "scene token pixel"]
    digit : Bool[Tensor, "scene token"]
        The four patches of the digit.
    strokes : Bool[Tensor, "scene stroke token"]
        Patches in which each stroke of a digit lies, whether this digit has it or not.
    label : Int[Tensor, "scene"]
        Digits are numbered anew by the seed.
    codes : Float[Tensor, "class stroke"]
        1 for strokes that a class has, -1 for others.
    """

    patches: Float[Tensor, "scene token pixel"]
    digit: Bool[Tensor, "scene token"]
    strokes: Bool[Tensor, "scene stroke token"]
    label: Int[Tensor, "scene"]
    codes: Float[Tensor, "class stroke"]

    def texts(self, attributes: bool, lot: int | None) -> Float[Tensor, "text class width"]:
        """Return one text of all strokes for each class, or a text for each stroke.

        Parameters
        ----------
        attributes : bool
            Whether each stroke has a text of its own.
        lot : int or None
            Seed that deals the texts out to classes in random order.
        """
        codes = self.codes
        if lot is not None:
            codes = codes[torch.randperm(10, generator=torch.Generator().manual_seed(lot))]
        return torch.diag_embed(codes).transpose(0, 1) if attributes else codes[None]


def described_digits(seed: int, n_fit: int, known: int) -> DescribedDigits:
    """Return a scene for each of the 1,797 digits.

    Parameters
    ----------
    seed : int
    n_fit, known : int
        Pieces are from those of the first ``n_fit`` digits that are of the first classes.
    """
    x, kind = shuffled_digits(seed)
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(seed + 77))
    label, n = order.argsort()[kind], len(x)
    own = rearrange(x, "n (a y b x) -> n (a b) (y x)", a=2, y=4, b=2, x=4)
    pieces = own[:n_fit][label[:n_fit] < known].flatten(0, 1)
    tokens = FAINT * pieces[torch.randint(len(pieces), (n, 16), generator=draw)]
    quarters = rearrange(torch.arange(16), "(a y b x) -> (a b) (y x)", a=2, y=2, b=2, x=2)
    at = quarters[torch.randint(4, (n,), generator=draw)]
    tokens.scatter_(1, at[..., None].expand(-1, -1, 16), own)
    parts = torch.stack([at == at[:, [i]] for i in range(4)], 1)  # (scene, quarter, quarter)
    cells = torch.zeros(n, 4, 16, dtype=torch.bool).scatter_(
        2, at[:, None].expand(-1, 4, -1), parts
    )
    strokes = torch.stack([cells[:, list(where)].any(1) for where in QUARTERS.values()], 1)
    codes = [[1.0 if stroke in had else -1.0 for stroke in QUARTERS] for had in STROKES]
    return DescribedDigits(tokens, cells.any(1), strokes, label, torch.tensor(codes)[order])
