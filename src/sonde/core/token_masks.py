"""Padding masks under the names that models give them, converted to a mask of real tokens.

``attention_mask`` is 1 at real tokens; torch's ``key_padding_mask`` is true at padding, or minus
infinity where it is added to scores. For the name ``mask`` there is no convention. Tokens are
padded on one side, so a value that all examples have on one side, and not on both, marks real
tokens; if this decides nothing, true is taken to mark real tokens. A few examples may decide
nothing although the whole data set would, so a data set is asked once (``marks_real``), and code
that sees batch after batch keeps the decision of the first batch (``MaskMeaning``).
"""

from collections.abc import Iterable, Mapping
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from sonde.core.errors import InputError

REAL = "attention_mask"
PADDED = ("key_padding_mask", "src_key_padding_mask", "padding_mask", "pad_mask")
EITHER = "mask"
NAMES = (REAL, *PADDED, EITHER)
OF_DECODER = ("decoder_attention_mask", "tgt_key_padding_mask")
"""Masks of a decoder's own tokens, beside those of an encoder: real tokens, then padding."""


def find_mask(named: Mapping[str, Any], stacked: bool = False) -> tuple[str, Tensor] | None:
    """Return name and value of the mask of (example, token) among a model's arguments, or None.

    A square ``mask`` may say which token looks at which, and is ignored. It counts if arguments are
    ``stacked`` from single examples: then there are as many examples as tokens.
    """
    for name in NAMES:
        value = named.get(name)
        if isinstance(value, Tensor) and value.ndim == 2:
            is_square = not stacked and value.shape[0] == value.shape[1]
            if not (name == EITHER and is_square):
                return name, value
    return None


def real_tokens(name: str, mask: Tensor, marks: bool | None = None) -> Bool[Tensor, "example pos"]:
    """Return which tokens are real; ``marks`` is the answer of ``marks_real`` for all examples.

    Raises
    ------
    InputError
        If name and mask do not tell which value marks padding.

    Examples
    --------
    >>> import torch
    >>> real_tokens("key_padding_mask", torch.tensor([[False, False], [False, True]])).tolist()
    [[True, True], [True, False]]
    >>> real_tokens("mask", torch.tensor([[True, True], [True, False]])).tolist()
    [[True, True], [True, False]]
    """
    marks = marks_real(name, [mask]) if marks is None else marks
    return mask != 0 if marks else mask == 0


def marks_real(name: str, masks: Iterable[Tensor]) -> bool:
    """Return whether the masks of examples differ from zero at real tokens, and not at padding.

    Parameters
    ----------
    name : str
    masks : iterable of Tensor
        All masks that there are, ``(example, pos)``.

    Raises
    ------
    InputError
        If the name does not say which value marks padding, and both values occur on both sides.
    """
    possible = _possible(name, masks)
    if not possible:
        raise InputError(
            f"expected a mask with padding on one side, got {name!r} with both values on either "
            f"side. Pass the mask under the name {REAL!r} (1 at real tokens) or {PADDED[0]!r} "
            "(true at padding)."
        )
    return True in possible


class MaskMeaning:
    """Which value of a mask marks real tokens, decided by the first batch and kept for all others.

    If the first batch decides nothing, true is taken to mark real tokens.
    """

    def __init__(self) -> None:
        self._marks: dict[str, bool] = {}

    def is_told_by(self, name: str, mask: Tensor) -> bool:
        """Return whether the padding value of this mask is known; a known value is kept."""
        possible = _possible(name, [mask])
        if name not in self._marks and len(possible) == 1:
            self._marks[name] = True in possible
        return name in self._marks

    def real_tokens(self, name: str, mask: Tensor) -> Bool[Tensor, "example pos"]:
        """Return which tokens are real.

        Raises
        ------
        InputError
            If a mask can only mean the opposite of the masks before it, or the first mask has both
            values on both sides.
        """
        if name not in self._marks:
            self._marks[name] = marks_real(name, [mask])
        marks = self._marks[name]
        if _possible(name, [mask]) == {not marks}:
            raise InputError(
                f"expected {name!r} to be {'' if marks else 'not '}zero at padding, as in the "
                "batches before, got one that can only mean the opposite. Pass the mask under the "
                f"name {REAL!r} (1 at real tokens) or {PADDED[0]!r} (true at padding)."
            )
        return real_tokens(name, mask, marks)


def _possible(name: str, masks: Iterable[Tensor]) -> set[bool]:
    """Return which values can mark a real token: True for "not zero", False for "zero"."""
    signs, sides = set[int](), (set[bool](), set[bool]())
    for mask in masks:
        if mask.is_floating_point() and mask.numel():
            signs |= {int(mask.min().sign()), int(mask.max().sign())}
        if name == EITHER and mask.numel():
            for side, at in zip(sides, (0, -1), strict=True):
                side |= {bool((mask[:, at] != 0).any()), bool((mask[:, at] != 0).all())}
    added = bool(signs) and (-1 in signs or 1 not in signs)
    if added or name != EITHER:
        return {name == REAL and not added}  # a mask that is added to scores is zero at real tokens
    if not all(sides):
        return {True, False}
    return {value for side in sides if len(side) == 1 for value in side}


def value_of_real(mask: Tensor, real: Tensor) -> float:
    """Return the value that a mask has at real tokens, or 1 if no token is real."""
    return float(mask[real][0]) if bool(real.any()) else 1.0
