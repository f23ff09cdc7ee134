"""Sinks: tokens whose states are many times as long as the states of all other tokens.

In trained transformers the first token that a model sees, and some special tokens, hold massive
values in most blocks. They would own every variance, so ``docs/decisions/sinks.md`` says which
statistics leave them out.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from sonde.core.errors import InputError, near

AUTO, KEEP = "auto", "keep"
ROLES = ("first", "special")
RATIO = 4.0
"""A role is a sink if its median length is this many medians of its site, in half of the sites."""


@dataclass(frozen=True)
class Sinks:
    """The roles whose tokens are sinks of a model.

    Parameters
    ----------
    first : bool, default=False
        The first real token of a sequence, as the model sees it.
    special : bool, default=False
        Tokens that the tokenizer declares special.
    """

    first: bool = False
    special: bool = False
    NONE: ClassVar["Sinks"]

    @classmethod
    def parse(cls, text: str) -> "Sinks":
        """Return the sinks that a text names: ``first``, ``special``, both, or ``keep`` for none.

        Raises
        ------
        InputError
            If a word is neither role.

        Examples
        --------
        >>> Sinks.parse("first,special")
        Sinks(first=True, special=True)
        >>> str(Sinks.parse("keep"))
        'keep'
        """
        words = [] if text == KEEP else [word.strip() for word in text.split(",")]
        for word in words:
            if word not in ROLES:
                raise InputError(
                    f"sinks: expected auto, keep, or roles among {', '.join(ROLES)}, got {word!r}."
                    + near(word, (AUTO, KEEP, *ROLES))
                )
        return cls(**{word: True for word in words})

    def __str__(self) -> str:
        return ",".join(role for role in ROLES if getattr(self, role)) or KEEP

    def __bool__(self) -> bool:
        return self.first or self.special

    def mask(
        self,
        real: Bool[Tensor, "example pos"],
        special: Bool[Tensor, "example pos"] | None,
    ) -> Bool[Tensor, "example pos"]:
        """Return the mask of the sinks among the tokens.

        A text without any other token keeps its sinks, so that it has a row.

        Parameters
        ----------
        real : Bool[Tensor, "example pos"]
            Tokens that are no padding.
        special : Bool[Tensor, "example pos"] or None
            Special tokens among them.
        """
        apart = torch.zeros_like(real) if special is None else special & real
        sinks = apart if self.special else torch.zeros_like(real)
        if self.first:
            sinks = sinks | (real & (real.long().cumsum(1) == 1))
        others = real & ~sinks & ~apart
        return sinks & others.any(dim=1, keepdim=True)


Sinks.NONE = Sinks()
