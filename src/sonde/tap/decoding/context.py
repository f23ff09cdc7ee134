"""Inputs of a decoding rule beside the logits of the generating model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from jaxtyping import Bool, Int
from torch import Tensor, nn

from sonde.core.inputs import Model
from sonde.tap.decoding.prompts import Rewording


@final
@dataclass(frozen=True, eq=False)
class OtherLogits:
    """Logits of the next token from another model or prompt.

    Parameters
    ----------
    model : Model, nn.Module or None, default=None
        Another causal model of the same vocabulary; None is the model that generates.
    prompt : callable or None, default=None
        What stands in place of the prompt: ``OtherPrompts``, or a function of ids, mask and the
        logits after any text; the generated tokens follow it.
    layer : int or None, default=None
        Take the state after this block (-1 is the last) through the final norm and the head.
    """

    model: Model | nn.Module | None = None
    prompt: Rewording | None = None
    layer: int | None = None


@final
@dataclass(frozen=True, eq=False)
class OtherState:
    """The state of the last token at a site.

    Parameters
    ----------
    site : str
        Site of one module, with the port ``out`` or ``in``.
    model : Model | Module, optional
        Model that is read in place of the generating model; by default that model itself.
    prompt : Callable, optional
        Prompts in place of the generation's: ``OtherPrompts``, or a function of ids, mask and the
        rest.
    """

    site: str
    model: Model | nn.Module | None = None
    prompt: Rewording | None = None


@dataclass(frozen=True, eq=False)
class DecodeContext:
    """Inputs of a decoding rule beside the logits.

    Parameters
    ----------
    others : mapping of str to Float[Tensor, "row token"] or Float[Tensor, "row dim"]
        What the rule reads, by the names in ``reads``.
    tokens : Int[Tensor, "row pos"] or None
        The prompt and what was generated after it.
    mask : Bool[Tensor, "row pos"] or None
        Which of these tokens are real, not padding.
    step : int
        How many tokens were generated before this one.
    ends : tuple of int
        Ids of the tokens that end a text.
    """

    others: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    tokens: Int[Tensor, "row pos"] | None = None
    mask: Bool[Tensor, "row pos"] | None = None
    step: int = 0
    ends: tuple[int, ...] = ()
