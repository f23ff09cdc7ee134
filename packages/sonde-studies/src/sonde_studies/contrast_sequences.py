"""Sequences with few labels: contrast of given views, and of learned views.

The lines of a digit are a sequence, read one by one by a recurrent net.
"""

from collections.abc import Callable
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from sonde.train import Contrast, LearnedViews
from sonde_studies._learned_views import contrast_of, learn_in_two_steps
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

LABELLED, FREE, STEPS, TINY, DIM, LINES, HEAT = 100, 1_200, 400, 5, 32, 8, 0.2
TWO_STEPS: dict[str, Literal["step", "nothing"]] = {"two steps": "step", "first order": "nothing"}
ALIKE = 0.9
WEIGHT = 0.5
"""Of the contrast beside the cross entropy; 0.1 of the margin is the loss's own."""


@final
class ContrastSequencesStudy(Study):
    """Labels alone, given views, and learned views: with or without margin, in one step or two."""

    name = "contrast-sequences"
    title = "do learned views of sequences help, and do they collapse without a margin?"
    paper = "qin2023mclrec"
    fidelity = "lines of digits in place of purchases; a plain virtual step at rate 0.1"
    data = "digits, line by line: 100 with labels and 1,100 without to train on, 597 to judge"
    claims = (
        Claim("given", "Contrast of given views (hidden, cut and reordered lines) helps.",
              "accuracy, given views less labels alone",
              arms=("given", "labels alone")),
        Claim("learned", "Learned views, with parameters of their own, help more "
              "beside the given ones.",
              "accuracy, learned with a margin less given",
              arms=("learned", "given")),
        Claim("margin", "They do so better with the margin than without.",
              "accuracy, learned with a margin less without",
              arms=("learned", "no margin")),
        Claim("collapse", "Without the margin the two learned views come out nearly the same.",
              "mean cosine of both, without the margin", above=ALIKE),
        Claim("two steps", "Maps that are updated after a virtual step of the net help more.",
              "accuracy, two steps (two batches a step) less maps and net at once",
              arms=("two steps", "learned")),
        Claim("through", "They help more than without the gradient through that step.",
              "accuracy, two steps less two steps without that gradient",
              arms=("two steps", "first order")),
    )  # fmt: skip
    null = Claim("lots", "Labels by lot are not told of other rows.",
                 "accuracy, given views, less 0.1")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each arm from the same weights."""
        x, label = shuffled_digits(seed)
        lines, steps = x.reshape(-1, LINES, 8), TINY if tiny else STEPS
        arms: dict[str, nn.Module | None] = {
            "labels alone": None,
            "given": Contrast(HEAT),
            "learned": drawn(lambda: LearnedViews(DIM, HEAT), seed),
            "no margin": drawn(lambda: LearnedViews(DIM, HEAT, weight=0.0), seed),
        }
        right, alike = dict[str, float](), dict[str, float]()
        for arm, contrast in arms.items():
            tick(arm)
            net = _learned(lines, label, contrast, seed, steps)
            right[arm] = _accuracy(net, lines[FREE:], label[FREE:])
            if isinstance(contrast, LearnedViews):
                alike[arm] = _alike(net, contrast, lines[FREE:])
        for arm, through in TWO_STEPS.items():
            tick(arm)
            net, views = drawn(_Net, seed), drawn(lambda: LearnedViews(DIM, HEAT), seed)
            loss = _loss_of(net, lines, label, views)
            learn_in_two_steps(
                net, net.body, views, loss, lines[:FREE], steps=steps, seed=seed, through=through
            )
            right[arm] = _accuracy(net, lines[FREE:], label[FREE:])
            alike[arm] = _alike(net, views, lines[FREE:])
        tick("labels by lot")
        return {
            "given": right["given"] - right["labels alone"],
            "learned": right["learned"] - right["given"],
            "margin": right["learned"] - right["no margin"],
            "collapse": alike["no margin"],
            "two steps": right["two steps"] - right["learned"],
            "through": right["two steps"] - right["first order"],
            "lots": by_lot(x, seed, steps),
            **{f"accuracy | {arm}": v for arm, v in right.items()},
            **{f"cosine of learned views | {arm}": v for arm, v in alike.items()},
        }


class _Net(nn.Module):
    """A recurrent net with one layer, whose last state is contrasted and classified."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.GRU(8, DIM, batch_first=True), nn.Linear(DIM, 10)

    def states(self, lines: Tensor) -> Tensor:
        """Return the state after the last line of each sequence."""
        return self.body(lines)[0][:, -1]


def by_lot(x: Tensor, seed: int, steps: int) -> float:
    """Return the accuracy beside given views on labels by lot, less that of chance."""
    lines, lots = x.reshape(-1, LINES, 8), labels_by_lot(x, 10, seed)
    net = _learned(lines, lots, Contrast(HEAT), seed, steps)
    return _accuracy(net, lines[FREE:], lots[FREE:]) - 0.1


def _learned(
    lines: Tensor, label: Tensor, contrast: nn.Module | None, seed: int, steps: int
) -> _Net:
    net = drawn(_Net, seed)
    own = [] if contrast is None else contrast.parameters()
    loss = _loss_of(net, lines, label, contrast)
    minimise(loss, [*net.parameters(), *own], FREE, steps=steps, seed=seed)
    return net


def _loss_of(
    net: _Net, lines: Tensor, label: Tensor, contrast: nn.Module | None
) -> Callable[[Tensor], Tensor]:
    def loss(rows: Tensor) -> Tensor:
        some = rows % LABELLED
        task = cross_entropy(net.head(net.states(lines[some])), label[some])
        if contrast is None:
            return task
        return task + WEIGHT * contrast_of(net.body, contrast, lines[rows])

    return loss


@torch.no_grad()
def _accuracy(net: _Net, lines: Tensor, label: Tensor) -> float:
    return float((net.head(net.states(lines)).argmax(1) == label).double().mean())


@torch.no_grad()
def _alike(net: _Net, learned: LearnedViews, lines: Tensor) -> float:
    """Return the mean cosine of an example's two learned views."""
    states = net.states(lines)
    one, other = (f(states) for f in learned.maps)
    return float(cosine_similarity(one, other, dim=1).mean())
