"""Base class ``Decode``: a rule that changes the logits of the next token during generation.

A rule names in ``reads`` what it needs beside the model's own logits: another model, another
prompt, an early layer, the state at a site. Another model or prompt runs with its own key-value
cache and follows the beams of the generation. A rule that must take tokens back or feed embeddings
is no ``Decode``, but a callable for ``generate(custom_generate=...)``.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.inputs import Model
from sonde.core.keywords import InitSignature, checked_new
from sonde.tap.decoding.context import DecodeContext, OtherLogits, OtherState

if TYPE_CHECKING:
    from sonde.tap.decoding.bound import BoundRule


class Decode(ABC):
    """A rule for the next token. Subclasses are final frozen dataclasses."""

    call_form: ClassVar[str] = "{name}(...).bind(model)"
    __new__ = checked_new
    __signature__ = InitSignature()

    def reads(self) -> Mapping[str, OtherLogits | OtherState]:
        """Return the name of the values that the context must contain."""
        return {}

    @abstractmethod
    def step(
        self, logits: Float[Tensor, "row token"], context: DecodeContext
    ) -> Float[Tensor, "row token"]:
        """Return the changed logits, or ``logits`` itself at strength 0.

        Each row that comes in or goes out is defined only up to a constant: greedy search and
        sampling give logits, beam search gives log-probabilities.
        """

    def bind(self, model: Model | nn.Module) -> "BoundRule":
        """Return the rule as a ``LogitsProcessor`` for this model's ``generate``.

        A hook on the model reads the mask of each call; it comes off with the processor, or at the
        end of ``with rule.bind(model) as processor``.

        Raises
        ------
        InputError
            If a model that the rule reads has another vocabulary, or is no causal model.
        SiteError
            If a layer or a site is not there, or its state does not give the model's logits.
        """
        from sonde.tap.decoding.bound import BoundRule

        return BoundRule(self, model)
