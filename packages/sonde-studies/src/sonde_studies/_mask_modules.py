"""Modules of a U-Net that draws masks: key points, attention of a class, fused levels.

Some have a lesson of their own, a loss beside that of the masks.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, max_pool2d

from sonde.layers import Exchange, LevelFusion, UnitGate
from sonde_studies._unet import WIDTH, Mixed, n_parameters

RARE = 10.0
"""Weight of a pixel of a mask, or of a key point, against one that is none."""


class KeyPoints(nn.Module):
    """Two maps of one level that meet, and a score of key points for each place of the first.

    Parameters
    ----------
    bridged : bool
        True: places of the second map attend to the eight places of the first that score highest.
        False: a map of both of as many parameters.
    """

    def __init__(self, bridged: bool) -> None:
        super().__init__()
        bridge = Exchange("bridge", WIDTH, top=8, radius=2 * 12)
        hidden = n_parameters(bridge) // (4 * WIDTH)
        self.merge = None if bridged else Mixed(2 * WIDTH, hidden)
        self.bridge = bridge if bridged else None
        self.score = bridge.score

    def forward(self, shallow: Tensor, deep: Tensor) -> Any:
        """Return both maps (row dim high wide)."""
        if self.merge is not None:
            return self.merge(shallow, deep)
        assert self.bridge is not None
        changed, _ = self.bridge(_tokens(deep), _tokens(shallow))
        return shallow, changed.transpose(1, 2).reshape(deep.shape)

    def lesson(self, shallow: Tensor, mask: Tensor) -> Tensor:
        """Return the cross entropy of the scores of places to the key points of a mask."""
        scores = self.score(_tokens(shallow)).squeeze(-1)
        return binary_cross_entropy_with_logits(
            scores, key_points(mask).flatten(1), pos_weight=scores.new_tensor(RARE)
        )


def key_points(mask: Tensor) -> Tensor:
    """Return the key points of masks: two corners of the box and its centre, at half the size.

    Parameters
    ----------
    mask : Float[Tensor, "row 1 high wide"]
        1 inside, 0 outside.
    """
    small = max_pool2d(mask, 2)[:, 0]
    (top, bottom), (left, right) = (_ends(small.amax(axis)) for axis in (2, 1))
    points, row = torch.zeros_like(small), torch.arange(len(small))
    for line, column in ((top, left), (bottom, right), ((top + bottom) // 2, (left + right) // 2)):
        points[row, line, column] = 1.0
    return points


def _ends(flags: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and the last place of each row (row place) that is not zero."""
    return flags.argmax(1), flags.shape[1] - 1 - flags.flip(1).argmax(1)


class ClassGate(nn.Module):
    """Deep maps times gates of places: the attention of a query that learns to tell the class.

    Parameters
    ----------
    by_lot : bool
        Attention that is put to other places of its picture by lot before it gates them.
    """

    def __init__(self, by_lot: bool) -> None:
        super().__init__()
        self.query, self.key = nn.Parameter(torch.randn(WIDTH)), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 10)
        self.gate = UnitGate(WIDTH, "tokens", "class_attention")
        self.lot = torch.Generator().manual_seed(0) if by_lot else None

    def attention(self, tokens: Tensor) -> Tensor:
        """Return the attention to each token (row token), which sums to 1."""
        return (self.key(tokens) @ self.query / WIDTH**0.5).softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps (row dim high wide): times up to 2 where attention is high."""
        tokens = _tokens(x)
        attention = self.attention(tokens)
        attention = attention / attention.amax(1, keepdim=True)
        if self.lot is not None:
            places = torch.rand(attention.shape, generator=self.lot).argsort(1)
            attention = attention.gather(1, places)
        return self.gate(tokens, attention).transpose(1, 2).reshape(x.shape)

    def lesson(self, x: Tensor, kind: Tensor) -> Tensor:
        """Return the cross entropy of the class that the attended tokens of maps tell."""
        tokens = _tokens(x)
        seen = (self.attention(tokens).unsqueeze(-1) * tokens).sum(1)
        return cross_entropy(self.head(seen), kind)


class FusedLevels(nn.Module):
    """Three levels that are fused with others, then shifts of channels between them.

    Parameters
    ----------
    meets : {"both", "coarser", "dense"}
        Levels that a level is fused with.
    non_adjacent : bool
        Shifts join the first and the last level too.
    refine : bool
        Fused levels attend to all fused levels.
    """

    def __init__(
        self,
        meets: Literal["both", "coarser", "dense"],
        non_adjacent: bool = False,
        refine: bool = False,
    ) -> None:
        super().__init__()
        self.fusion = LevelFusion(WIDTH, 3, meets=meets, refine=refine)
        self.shift = Exchange("shift", WIDTH, n_streams=3, non_adjacent=non_adjacent)

    def forward(self, *levels: Tensor) -> tuple[Tensor, ...]:
        """Return the levels, fine to coarse."""
        return self.shift(*self.fusion(*levels))


def _tokens(x: Tensor) -> Tensor:
    """Return maps (row dim high wide) as tokens (row token dim)."""
    return x.flatten(2).transpose(1, 2)
