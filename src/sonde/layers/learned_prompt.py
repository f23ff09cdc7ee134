"""Learned vectors, or states of another encoder, before the embedded words of a text."""

from collections.abc import Mapping
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.layers.layer import Layer


@final
class LearnedPrompt(Layer):
    """Put learned vectors before the embedded words of each text; each kind of text has its own.

    The text encoder stays frozen: the gradient of a task goes through it into the vectors alone.
    With several ``kinds`` each kind of class name learns its own: OpenSD has one for things and one
    for stuff. Give the encoder's output to ``TargetHead`` as targets.

    With a ``source`` a projector maps the states of another encoder, of speech or of pictures, to
    embedded words and puts them in front: the branch of GOAT-TTS that aligns a speech encoder with
    a language model. Train it by the model's own loss, with the model frozen (``Scope``).

    Cost         kinds n dim numbers, and with a source dim (source + dim + 2) more.
    Assumes      an encoder that takes embeddings; with padding, at the end.

    Parameters
    ----------
    dim : int
        Width of the embedded words.
    n : int, default=4
        Number of learned vectors before each text.
    kinds : int, default=1
        Number of kinds of text, each with vectors of its own.
    scale : float, default=0.02
        Standard deviation of the vectors at the start.
    seed : int, default=0
        Seed of the vectors at the start.
    source : int, default=0
        Width of another encoder's states, which a projector of two layers maps; 0 takes none.

    References
    ----------
    li2023opensd, song2025goattts
    """

    paper: ClassVar[str] = "li2023opensd"
    variants: ClassVar[Mapping[str, str]] = {
        "kinds=2": "li2023opensd",
        "source=8": "song2025goattts",
    }
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"dim": 4, "n": 2},
        {"dim": 4, "n": 3, "kinds": 2},
        {"dim": 4, "n": 1, "source": 3},
    )
    layout: ClassVar[tuple[str, ...]] = ("row word dim",)
    insertable = False

    def __init__(
        self,
        dim: int,
        n: int = 4,
        kinds: int = 1,
        scale: float = 0.02,
        seed: int = 0,
        source: int = 0,
    ) -> None:
        super().__init__()
        if min(n + source, kinds) < 1 or min(n, source) < 0:
            raise InputError(
                "LearnedPrompt: expected at least one vector, or a source, and one kind, got "
                f"n={n}, source={source} and kinds={kinds}."
            )
        self.dim, self.kinds, self.source = dim, kinds, source
        self.project = None
        if source:
            layers = (nn.Linear(source, dim), nn.GELU(), nn.Linear(dim, dim))
            self.project = nn.Sequential(*layers)
        drawn = torch.randn(kinds, n, dim, generator=torch.Generator().manual_seed(seed))
        self.vectors = nn.Parameter(scale * drawn)

    def forward(
        self,
        x: Float[Tensor, "row word dim"],
        kind: Int[Tensor, "row"] | None = None,
        states: Float[Tensor, "row step source"] | None = None,
    ) -> Float[Tensor, "row place dim"]:
        """Return the texts with projected states and the vectors of their kind in front.

        Parameters
        ----------
        x : Float[Tensor, "row word dim"]
        kind : Int[Tensor, "row"], optional
            Kind of each text; by default all are of kind 0.
        states : Float[Tensor, "row step source"], optional
            Of another encoder; they come first. Without them the texts have the vectors alone.

        Raises
        ------
        InputError
            If a kind is out of range, or states are given without a source.
        """
        of = torch.zeros(len(x), dtype=torch.long, device=x.device) if kind is None else kind
        if len(of) and not 0 <= int(of.min()) <= int(of.max()) < self.kinds:
            raise InputError(
                f"LearnedPrompt.forward: expected kinds from 0 to {self.kinds - 1}, got "
                f"{int(of.min())} to {int(of.max())}."
            )
        parts = [self.vectors[of].to(x), x]
        if states is not None:
            if self.project is None or states.shape[-1] != self.source:
                raise InputError(
                    f"LearnedPrompt.forward: expected states of width source={self.source}, got "
                    f"width {states.shape[-1]}. Pass source={states.shape[-1]}."
                )
            parts.insert(0, self.project(states).to(x))
        return torch.cat(parts, 1)
