"""Digits that have other names, or other pixels, in each of four languages of two families.

A third set differs in nothing: marks of languages are dealt by lot.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from sonde.layers import Experts, routing_divergence
from sonde_studies.arms import note_again
from sonde_studies.study import Tick
from sonde_studies.worlds.learning import drawn, minimise

FAMILY = (0, 0, 1, 1)
ROWS = (400, 100, 400, 100)
POOR = (1, 3)
LANGUAGES, NAMES, PIXELS = len(FAMILY), 10, 64
DEPTH, LATE, WIDTH, CHOSEN, BALANCE = 3, 1, 32, 2, 0.01
Arm = Literal["late", "early", "everywhere", "families", "learned"]
ARMS: dict[str, tuple[Arm, ...]] = {
    "names": ("learned", "late", "early", "everywhere", "families"),
    "pixels": ("learned", "late", "early"),
    "nothing": ("learned", "late", "early", "everywhere"),
}


@dataclass(frozen=True)
class Speech:
    """Rows of all languages.

    Parameters
    ----------
    x : Float[Tensor, "row dim"]
        Pixels, and a mark of the language.
    name : Int[Tensor, "row"]
    language : Int[Tensor, "row"]
    """

    x: Float[Tensor, "row dim"]
    name: Int[Tensor, "row"]
    language: Int[Tensor, "row"]


def languages(
    x: Float[Tensor, "row pixel"], digit: Int[Tensor, "row"], differ: str, seed: int
) -> tuple[Speech, Speech]:
    """Return rows to train on, each in one language, and the other rows in every language.

    Two languages of a family differ in two of ten names, or in a fifth of the pixels' places.

    Parameters
    ----------
    x, digit
        Images and their digits.
    differ : {"names", "pixels", "nothing"}
        In what languages differ; "nothing" leaves marks that are dealt by lot.
    seed : int
        Draws the names and the places.
    """
    draw = torch.Generator().manual_seed(seed)
    names, places = list[Tensor](), list[Tensor]()
    for one, other in zip(FAMILY, (None, *FAMILY), strict=False):
        is_new = one != other
        for n, found in ((NAMES, names), (PIXELS, places)):
            own = torch.randperm(n, generator=draw) if is_new else found[-1].clone()
            some = torch.randperm(n, generator=draw)[: n // 5]
            own[some] = own[some.roll(0 if is_new else 1)]
            found.append(own)
    if differ != "names":
        names = [torch.arange(NAMES)] * LANGUAGES
    if differ != "pixels":
        places = [torch.arange(PIXELS)] * LANGUAGES

    def said(rows: Tensor, language: Tensor) -> Speech:
        seen = x[rows].gather(1, torch.stack(places)[language])
        mark = one_hot(language, LANGUAGES).to(x)
        return Speech(
            torch.cat([seen, mark], 1), torch.stack(names)[language, digit[rows]], language
        )

    n = sum(ROWS)
    left = torch.arange(n, len(x))
    every = torch.arange(LANGUAGES)
    return (
        said(torch.arange(n), every.repeat_interleave(torch.tensor(ROWS))),
        said(left.repeat(LANGUAGES), every.repeat_interleave(len(left))),
    )


class RoutedNet(nn.Module):
    """Residual blocks; some have experts."""

    def __init__(self, arm: Arm) -> None:
        super().__init__()
        dim = PIXELS + LANGUAGES
        first = {"late": DEPTH - LATE, "families": DEPTH - LATE}.get(arm, 0)
        last = LATE if arm == "early" else DEPTH
        n = len({*FAMILY}) if arm == "families" else LANGUAGES
        width = WIDTH * LANGUAGES // n  # as many parameters
        self.arm: Arm = arm
        self.blocks = nn.ModuleList(
            (
                Experts(dim, n, width, "top_k" if arm == "learned" else "label", k=CHOSEN)
                if first <= i < last
                else Experts(dim, 1, WIDTH, "mean", k=1)
            )
            for i in range(DEPTH)
        )
        self.head = nn.Linear(dim, NAMES)

    @property
    def experts(self) -> list[Experts]:
        """The blocks."""
        return [block for block in self.blocks if isinstance(block, Experts)]

    def states(self, x: Tensor, language: Tensor) -> list[Tensor]:
        """Return the input and the states after each block."""
        label = torch.tensor(FAMILY)[language] if self.arm == "families" else language
        found = [x]
        for block in self.experts:
            found.append(block(found[-1], label))
        return found


def routed(arm: Arm, speech: Speech, *, steps: int, seed: int) -> RoutedNet:
    """Return a net trained to name the digits."""
    net = drawn(lambda: RoutedNet(arm), seed)

    def loss(rows: Tensor) -> Tensor:
        states = net.states(speech.x[rows], speech.language[rows])
        wrong = cross_entropy(net.head(states[-1]), speech.name[rows])
        if arm != "learned":
            return wrong
        uneven = sum(b.balance(h) for b, h in zip(net.experts, states[:-1], strict=True))
        return wrong + BALANCE * uneven

    minimise(loss, net.parameters(), len(speech.x), steps=steps, seed=seed)
    return net.eval()


@torch.no_grad()
def accuracies(net: RoutedNet, speech: Speech) -> list[float]:
    """Return the accuracy in each language."""
    states = net.states(speech.x, speech.language)
    right = (net.head(states[-1]).argmax(1) == speech.name).double()
    return [float(right[speech.language == i].mean()) for i in range(LANGUAGES)]


@torch.no_grad()
def divergences(net: RoutedNet, speech: Speech) -> list[float]:
    """Return the routing divergence of the languages at each block, in bits."""
    states = net.states(speech.x, speech.language)
    return [
        float(routing_divergence(block.shares(h), speech.language))
        for block, h in zip(net.experts, states[:-1], strict=True)
    ]


def routes(x: Tensor, digit: Tensor, steps: int, seed: int, tick: Tick) -> dict[str, float]:
    """Return the figures of experts at each depth, and of learned routers."""
    right, bits, found = dict[str, float](), dict[str, list[float]](), dict[str, float]()
    poor = dict[str, float]()
    for differ, arms in ARMS.items():
        fit, held = languages(x, digit, differ, seed)
        for arm in arms:
            tick(f"{differ}: {arm}")
            net = routed(arm, fit, steps=steps, seed=seed)
            each, key = accuracies(net, held), f"{differ}, {arm}"
            right[key], poor[key] = sum(each) / len(each), sum(each[i] for i in POOR) / len(POOR)
            if arm == "learned":
                bits[differ] = divergences(net, held)
                for layer in ("first", "last"):
                    note_again(f"{differ}: learned, {layer} layer", f"{differ}: learned")
        found |= {f"{differ} differ | bits, block {i + 1}": v for i, v in enumerate(bits[differ])}
    gain = {differ: right[f"{differ}, late"] - right[f"{differ}, early"] for differ in ARMS}
    return found | {
        "spread": bits["names"][-1] - bits["names"][0],
        "late": gain["names"],
        "everywhere": right["names, late"] - right["names, everywhere"],
        "families": poor["names, families"] - poor["names, late"],
        "mirror": bits["pixels"][0] - bits["pixels"][-1],
        "early": -gain["pixels"],
        "marks": bits["pixels"][0] - bits["nothing"][0],
        "due": gain["names"] - gain["nothing"],
        "due early": gain["nothing"] - gain["pixels"],
        **{f"{arm} | accuracy": v for arm, v in right.items()},
        **{f"{arm} | poor languages": v for arm, v in poor.items()},
    }
