"""Padding masks, found by their argument names and converted to masks of real tokens.

``attention_mask`` is 1 at real tokens; torch's ``key_padding_mask`` is true at padding, or minus
infinity where it is added to scores. For other names such as ``mask`` there is no convention: a
square one may say which token sees which (``MaskMeaning.is_of_tokens``). Tokens are padded on one
side, so a value that all examples have on one side, and not on both, marks real tokens; if this
decides nothing, true is taken to mark real tokens. A few examples may decide nothing although the
whole data set would, so a data set is asked once (``marks_real``), and code that sees batch after
batch keeps the decision of the first batch (``MaskMeaning``).
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from sonde.core.errors import InputError

REAL = "attention_mask"
PADDED = ("key_padding_mask", "src_key_padding_mask", "padding_mask", "pad_mask")
OPEN = ("mask", "src_mask", "attn_mask", "input_mask", "token_mask")
"""Names that leave open which value marks padding, and whether a square mask marks any."""
NAMES = (REAL, *PADDED, *OPEN)
OF_DECODER = ("decoder_attention_mask", "tgt_key_padding_mask")
"""Masks of a decoder's own tokens, beside those of an encoder: real tokens, then padding."""


def find_mask(
    named: Mapping[str, Any], of_tokens: Callable[[str, Tensor], bool] | None = None
) -> tuple[str, Tensor] | None:
    """Return the name and value of the padding mask among a model's arguments, or None.

    Parameters
    ----------
    named : mapping of str to object
    of_tokens : callable, optional
        ``of_tokens(name, mask)`` says whether a square mask under an open name marks tokens; by
        default it does, as where arguments are stacked from single examples.
    """
    for name in NAMES:
        value = named.get(name)
        if isinstance(value, Tensor) and value.ndim == 2:
            is_open = name in OPEN and value.shape[0] == value.shape[1]
            if not is_open or of_tokens is None or of_tokens(name, value):
                return name, value
    return None


def real_tokens(name: str, mask: Tensor, marks: bool | None = None) -> Bool[Tensor, "example pos"]:
    """Return a mask of real tokens; ``marks`` is the result of ``marks_real``.

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
    """Return whether real tokens have non-zero mask values, and padding has zeros.

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
            f"expected a mask with padding on one side, got {name!r}, which has both values on "
            f"both sides. Pass the mask under the name {REAL!r} (1 at real tokens) or "
            f"{PADDED[0]!r} (true at padding)."
        )
    return True in possible


class MaskMeaning:
    """Mask value of real tokens, inferred from the first batch and then kept.

    If the first batch decides nothing, true is taken to mark real tokens.
    """

    def __init__(self) -> None:
        self._marks: dict[str, bool] = {}
        self._of_tokens: dict[str, bool] = {}

    def real_in(
        self,
        named: Mapping[str, Any],
        known: Collection[str] = (),
        past: int = 0,
        n_fed: int | None = None,
    ) -> Bool[Tensor, "example pos"] | None:
        """Return a mask of a call's real tokens; None without a mask argument.

        Parameters
        ----------
        named : mapping of str to object
            Arguments by name.
        known : collection of str, default=()
            Names of all parameters of the module's forward.
        past, n_fed : int, optional
            Tokens in a cache, and tokens that the call reads.

        Raises
        ------
        InputError
            If a mask may mean either.
        """
        token_mask = find_mask(
            named, lambda name, mask: self.is_of_tokens(name, mask, named, known)
        )
        if token_mask is not None:
            return self.real_tokens(*token_mask)
        masks = (named.get(name) for name in NAMES)
        wide = next((m for m in masks if isinstance(m, Tensor) and m.ndim in (3, 4)), None)
        return None if wide is None else real_of_pairs(sights(wide), past, n_fed)

    def is_of_tokens(
        self, name: str, mask: Tensor, named: Mapping[str, Any], known: Collection[str] = ()
    ) -> bool:
        """Return whether a square mask marks padding and not attention between tokens.

        It does not if the call has another place for padding, or if no other argument has as many
        examples as tokens. The masks of earlier calls tell too. Otherwise its values tell: a causal
        mask, or one that is not padded on one side, says which token sees which; a mask that
        hides tokens from themselves marks tokens.

        Raises
        ------
        InputError
            If nothing tells.
        """
        if any(other in known for other in NAMES if other not in OPEN):
            return False
        given = [x.shape[:2] for k, x in named.items() if _has_rows(k, x)]
        if given and mask.shape not in given:
            self._of_tokens[name] = False
        if name in self._of_tokens:
            return self._of_tokens[name]
        seen = mask != 0
        if bool(seen.all()) or not bool(seen.any()):
            return True
        order = torch.ones_like(seen).tril()
        if any(torch.equal(one, order) for one in (seen, ~seen, seen.mT, ~seen.mT)):
            return False
        if int((seen[:, 1:] != seen[:, :-1]).sum(1).max()) > 1:
            return False
        own = seen.diagonal()
        if bool(own.all()) or not bool(own.any()):
            raise InputError(
                f"expected a mask that says which tokens are padding, got a square {name!r} of "
                f"{len(mask)} x {len(mask)}, which may also mean which token attends to which. "
                f"Pass it under the name {REAL!r} (1 at real tokens), or run another number of "
                "examples first."
            )
        return True

    def is_told_by(self, name: str, mask: Tensor) -> bool:
        """Return whether the padding value of this mask is known; a known value is kept."""
        possible = _possible(name, [mask])
        if name not in self._marks and len(possible) == 1:
            self._marks[name] = True in possible
        return name in self._marks

    def real_tokens(self, name: str, mask: Tensor) -> Bool[Tensor, "example pos"]:
        """Return a mask of the real tokens.

        Raises
        ------
        InputError
            If a mask can only mean the opposite of the masks before it, or the first mask has both
            values on both sides.
        """
        if name in OPEN and mask.shape[0] != mask.shape[1]:
            self._of_tokens[name] = True
        if name not in self._marks:
            self._marks[name] = marks_real(name, [mask])
        marks = self._marks[name]
        if _possible(name, [mask]) == {not marks}:
            raise InputError(
                f"expected {name!r} to be {'' if marks else 'not '}zero at padding, as in "
                "earlier batches, got a mask that has the opposite meaning. Pass the mask under "
                f"the name {REAL!r} (1 at real tokens) or {PADDED[0]!r} (true at padding)."
            )
        return real_tokens(name, mask, marks)


def _possible(name: str, masks: Iterable[Tensor]) -> set[bool]:
    """Return the possible marks of real tokens: True for "not zero", False for "zero"."""
    signs, sides = set[int](), (set[bool](), set[bool]())
    for mask in masks:
        if mask.is_floating_point() and mask.numel():
            signs |= {int(mask.min().sign()), int(mask.max().sign())}
        if name in OPEN and mask.numel():
            for side, at in zip(sides, (0, -1), strict=True):
                side |= {bool((mask[:, at] != 0).any()), bool((mask[:, at] != 0).all())}
    added = bool(signs) and (-1 in signs or 1 not in signs)
    if added or name not in OPEN:
        return {name == REAL and not added}  # a mask that is added to scores is zero at real tokens
    if not all(sides):
        return {True, False}
    return {value for side in sides if len(side) == 1 for value in side}


def value_of_real(mask: Tensor, real: Tensor) -> float:
    """Return the mask value of real tokens, or 1 if no token is real."""
    return float(mask[real][0]) if bool(real.any()) else 1.0


def _has_rows(name: str, x: Any) -> bool:
    """Return whether an argument may have example and token axes: no mask, two axes or more."""
    return isinstance(x, Tensor) and x.ndim >= 2 and "mask" not in name


def sights(mask: Tensor) -> Bool[Tensor, "example query key"]:
    """Return a boolean mask of visible keys, without a head axis.

    A mask that is added to scores is 0 where a token is seen, any other differs from 0 there.
    """
    if mask.dtype != torch.bool and torch.compiler.is_compiling():
        seen = mask == 0  # values cannot be looked at
    elif mask.is_floating_point() and (bool((mask < 0).any()) or not bool(mask.any())):
        seen = mask == 0
    else:
        seen = mask != 0
    return seen.any(1) if mask.ndim == 4 else seen


def real_of_pairs(
    seen: Bool[Tensor, "example query key"], past: int = 0, n_fed: int | None = None
) -> Bool[Tensor, "example pos"]:
    """Return a mask of real tokens, cached ones first, from a mask of visible pairs.

    A token is real if a token sees it and, where it has a line of its own, if it sees itself. Lines
    that see everything, unlike the last one, are of padding that would see nothing otherwise.

    Examples
    --------
    >>> seen = torch.tensor([[[1, 1, 0], [1, 1, 0], [1, 1, 0]]]).bool()
    >>> real_of_pairs(seen).tolist(), real_of_pairs(seen[:, :1]).tolist()
    ([[True, True, False]], [[True, True, False]])
    """
    n, queries, keys = seen.shape
    if queries == 1 and n_fed != 1:
        return seen[:, 0, : keys if n_fed is None else past + n_fed]
    real, before = seen.any(2), seen.new_ones(n, past)
    if keys >= past + queries:
        real = real & seen.diagonal(past, 1, 2)[:, :queries] & seen.any(1)[:, past : past + queries]
        everything = seen.all(2)
        real = real & ~(everything & ~everything[:, -1:])
        before = seen[:, -1, :past]
    return torch.cat((before, real), dim=1)
