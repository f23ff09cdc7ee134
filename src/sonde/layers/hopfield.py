"""Associative memories: retrieve the stored pattern nearest to a state.

Dense memories are attention over patterns; the Hebbian one stores patterns of -1, 0 and 1 in a
matrix of couplings.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from sonde.core.errors import InputError, ShapeError
from sonde.layers.layer import Layer

MOST_STEPS = 20


@final
class Hopfield(Layer):
    """Move states towards stored patterns: ``xi <- X' softmax(beta X xi)``.

    ``retrieve`` takes the patterns with each call and returns the moved states. ``lookup`` has
    patterns of its own and adds what it retrieves through a map that starts at zero. ``pool``
    moves learned queries over a set and returns one state for each query.

    Cost         2 patterns dim products for each state and step.
    Assumes      states and patterns of one scale; ``beta`` says how sharp the retrieval is.

    Parameters
    ----------
    dim : int
        Width of the states.
    mode : {"retrieve", "lookup", "pool"}, default="lookup"
        Whether the patterns come with each call, belong to the layer, or are a set that is pooled.
    n : int, default=16
        Patterns of ``lookup``, or queries of ``pool``.
    beta : float, optional
        ``1 / sqrt(dim)`` by default.
    steps : int, default=1
        Largest number of steps; 1 is attention.
    tolerance : float, default=1e-4
        A state that moves less stays where it is.

    References
    ----------
    ramsauer2021hopfield
    """

    paper: ClassVar[str] = "ramsauer2021hopfield"
    variants: ClassVar[Mapping[str, str]] = {"mode='pool'": "ramsauer2021hopfield"}
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"dim": 4, "n": 5, "beta": 1.5, "steps": 3, "tolerance": 0.0},
        {"dim": 4, "mode": "pool", "n": 2},
        {"dim": 4, "mode": "retrieve", "steps": 2},
    )
    layout: ClassVar[tuple[str, ...]] = ("row item dim",)
    symmetry = "permutation"

    def __init__(
        self,
        dim: int,
        mode: Literal["retrieve", "lookup", "pool"] = "lookup",
        n: int = 16,
        beta: float | None = None,
        steps: int = 1,
        tolerance: float = 1e-4,
    ) -> None:
        super().__init__()
        if not 1 <= steps <= MOST_STEPS or n < 1:
            raise InputError(
                f"Hopfield: expected 1 to {MOST_STEPS} steps and n of 1 or more, got {steps}, {n}."
            )
        self.dim, self.mode, self.steps, self.tolerance = dim, mode, steps, tolerance
        self.beta = 1 / math.sqrt(dim) if beta is None else beta
        self.insertable = self.pointwise = mode == "lookup"
        if mode == "retrieve":
            self.layout = ("row item dim", "pattern dim")  # pyright: ignore
        else:
            self.patterns = nn.Parameter(torch.randn(n, dim))
        if mode == "lookup":
            self.out = nn.Linear(dim, dim)
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    @classmethod
    def of(cls, patterns: Float[Tensor, "pattern dim"], **parameters: Any) -> "Hopfield":
        """Return a layer that looks up given patterns, such as rows or class means."""
        new = cls(patterns.shape[1], "lookup", len(patterns), **parameters).to(patterns)
        with torch.no_grad():
            new.patterns.copy_(patterns)
        return new

    def forward(
        self,
        x: Float[Tensor, "row item dim"],
        memory: Float[Tensor, "pattern dim"] | None = None,
        mask: Bool[Tensor, "row item"] | None = None,
    ) -> Float[Tensor, "row item2 dim"]:
        """Return the moved states, the states plus mapped retrieved patterns, or pooled states.

        Parameters
        ----------
        x : Float[Tensor, "row item dim"]
        memory : Float[Tensor, "pattern dim"], optional
            For ``retrieve``.
        mask : Bool[Tensor, "row item"], optional
            True for real items; ``pool`` looks at real items only.
        """
        if (memory is None) == (self.mode == "retrieve"):
            raise InputError(
                "Hopfield: expected patterns in the call with mode='retrieve', and no patterns "
                "with another mode."
            )
        if self.mode == "pool":
            queries = self.patterns.expand(len(x), -1, -1)
            return self.retrieved(queries, x, mask)
        stored = (self.patterns if memory is None else memory).expand(len(x), -1, -1)
        moved = self.retrieved(x, stored)
        return x + self.out(moved) if self.mode == "lookup" else moved

    def retrieved(
        self,
        x: Float[Tensor, "row item dim"],
        patterns: Float[Tensor, "row pattern dim"],
        mask: Bool[Tensor, "row pattern"] | None = None,
    ) -> Float[Tensor, "row item dim"]:
        """Return the states after the retrieval steps, without learned maps."""
        allowed = None if mask is None else mask[:, None]
        for _ in range(self.steps):
            new = scaled_dot_product_attention(
                x, patterns, patterns, attn_mask=allowed, scale=self.beta
            )
            moves = (new - x).detach().abs().amax(-1, keepdim=True) >= self.tolerance
            x = torch.where(moves, new, x) if self.steps > 1 else new
        return x


def hopfield_energy(
    x: Float[Tensor, "*axes dim"], patterns: Float[Tensor, "pattern dim"], beta: float
) -> Float[Tensor, "*axes"]:
    """Return the energy of states, which a step of a dense memory never raises.

    ``-lse(beta X xi) / beta + |xi|^2 / 2 + log(n) / beta + max |x|^2 / 2``; at least 0.

    Parameters
    ----------
    x : Float[Tensor, "row dim"]
        States whose energy is computed.
    patterns : Float[Tensor, "pattern dim"]
        Stored patterns.
    beta : float
        Inverse temperature of the memory, above 0.
    """
    n, largest = len(patterns), patterns.square().sum(1).max()
    free = (beta * x @ patterns.T).logsumexp(-1) / beta
    return -free + x.square().sum(-1) / 2 + math.log(n) / beta + largest / 2


def hebbian_couplings(patterns: Float[Tensor, "pattern unit"]) -> Float[Tensor, "unit unit"]:
    """Return ``sum xi xi' / units`` without its diagonal; blank entries (0) store nothing.

    Parameters
    ----------
    patterns : Float[Tensor, "pattern unit"]
        Patterns of -1, 1 and 0 (blank).
    """
    couplings = patterns.T @ patterns / patterns.shape[1]
    return couplings.fill_diagonal_(0.0)


def hebbian_recall(
    couplings: Float[Tensor, "unit unit"],
    state: Float[Tensor, "unit2"],
    steps: int = 20,
    temperature: float = 0.0,
    seed: int = 0,
) -> Float[Tensor, "unit2"]:
    """Return a state of -1 and 1 after sweeps over all units in random order.

    Parameters
    ----------
    couplings : Float[Tensor, "unit unit"]
        Couplings of all pairs of units, as ``hebbian_couplings`` returns them.
    state : Float[Tensor, "unit"]
        Start; stays as it is.
    steps : int, default=20
        Sweeps; at temperature 0 the first sweep that changes nothing is the last.
    temperature : float, default=0.0
        Above 0 a unit is 1 with probability ``1 / (1 + exp(-2 field / temperature))`` (Glauber).
    seed : int, default=0
        Seed of the order of units.
    """
    if couplings.shape != (len(state), len(state)):
        raise ShapeError(
            f"hebbian_recall: expected couplings of {len(state)} units, got "
            f"{tuple(couplings.shape)}."
        )
    s, generator = state.clone(), torch.Generator().manual_seed(seed)
    field = couplings @ s
    for _ in range(steps):
        changed = False
        draws = torch.rand(len(s), generator=generator, dtype=torch.float64)
        for i in torch.randperm(len(s), generator=generator).tolist():
            here, old = float(field[i]), float(s[i])
            if temperature > 0:
                up = 1 / (1 + math.exp(min(700.0, -2 * here / temperature)))
                new = 1.0 if float(draws[i]) < up else -1.0
            else:
                new = old if here == 0 else math.copysign(1.0, here)
            if new != old:
                field += (new - old) * couplings[:, i]
                s[i], changed = new, True
        if not changed and temperature == 0:
            break
    return s


def keys_for_mass(probs: Float[Tensor, "*axes key"], mass: float = 0.9) -> Int[Tensor, "*axes"]:
    """Return the smallest number of keys with a fraction of each row's attention.

    Parameters
    ----------
    probs : Float[Tensor, "*axes key"]
        Attention probabilities; the last axis runs over the keys.
    mass : float, default=0.9
        Fraction of a row's attention, in (0, 1].

    Examples
    --------
    >>> keys_for_mass(torch.full((512,), 1 / 512)).item()
    461
    """
    held = probs.double().sort(-1, descending=True).values.cumsum(-1)
    return (held < mass * probs.double().sum(-1, keepdim=True) * (1 - 1e-6)).sum(-1) + 1
