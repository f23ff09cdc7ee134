"""Test whether nets' majority and minority accuracies lie on a concave curve."""

from typing import final

import torch
from torch import Tensor

from sonde.measure import SubpopulationCurve, subpopulation_curve
from sonde_studies._layers import plain_net, split, trained
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import accuracy

AGREES = (0.5, 0.7, 0.9, 0.97)
STEPS, AT, RATES, WIDTHS = 600, (15, 30, 60, 120, 240), (3e-4, 1e-3), (4, 16, 64)
TRAIN = 800


@final
class SubpopulationCurveStudy(Study):
    """Odd and even digits, with a colour that agrees with the class at a planted rate.

    The majority are test digits whose colour agrees with their class. Points are the steps of
    twelve nets (two rates, three widths, two seeds); a net is what the test counts.
    """

    name = "subpopulation-curve"
    title = "do accuracies on majority and minority lie on a curve that bends down?"
    paper = "liang2023accuracy"
    fidelity = "probits and polynomials as published; the test counts nets, not their epochs"
    data = "scikit-learn's digits, odd against even, a planted colour; fully connected nets"
    claims = (
        Claim(
            "moon",
            "Where nine in ten colours agree, the curve bends down.",
            "coefficient of the square, sign turned",
        ),
        Claim(
            "better than a line",
            "There the curve, of one parameter more, explains at least a tenth of the variance "
            "more than a line.",
            "difference of shares of variance",
            above=0.1,
            arms=("curve", "line"),
        ),
        Claim(
            "grows",
            "It bends more where 97 of 100 agree than where 70 do.",
            "difference of coefficients",
            arms=("97% agree", "70% agree"),
        ),
    )
    null = Claim(
        "halves",
        "Two halves of the test digits, coloured by lot, in place of majority and minority.",
        "coefficient of the square, half of the colours agree in training",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train twelve nets for each rate of agreeing colours."""
        found = {}
        for agrees in AGREES:
            tick(f"{agrees:.0%} agree")
            found[agrees] = _curve(seed, agrees, tiny)
        figures = {
            f"{name} | {agrees:.0%}": _figure(found[agrees], name)
            for agrees in AGREES
            for name in ("value", "p_value", "r2_line", "r2_gain", "peak")
        }
        for name, parameters in (("curve", 3), ("line", 2)):
            note_for(name, rows=len(found[0.9].x), parameters=parameters)
        tick("halves by lot")
        halves = _curve(seed, 0.5, tiny, by_lot=True)
        return {
            "moon": -_figure(found[0.9], "value"),
            "better than a line": _figure(found[0.9], "r2_gain"),
            "grows": _figure(found[0.7], "value") - _figure(found[0.97], "value"),
            "halves": _figure(halves, "value"),
            **figures,
        }


def _figure(curve: SubpopulationCurve, name: str) -> float:
    """Return a number without its last digits, in which least-squares runs differ."""
    return round(float(getattr(curve, name)), 9)


def _curve(seed: int, agrees: float, tiny: bool, by_lot: bool = False) -> SubpopulationCurve:
    d = split(seed, TRAIN)
    draw = torch.Generator().manual_seed(1000 + seed)
    label, label_test = d.label % 2, d.label_test % 2
    colour = torch.where(torch.rand(len(label), generator=draw) < agrees, label, 1 - label)
    x = _coloured(d.x, colour)
    sides = [(_coloured(d.x_test, c), label_test) for c in (label_test, 1 - label_test)]
    if by_lot:
        lot = torch.rand(len(label_test), generator=draw) < 0.5
        sides = [
            (_coloured(x, lot[i::2].long()), label_test[i::2])
            for i, x in ((0, d.x_test[::2]), (1, d.x_test[1::2]))
        ]
    points: list[tuple[float, ...]] = []
    group: list[int] = []
    steps, at = (60, (15, 30)) if tiny else (STEPS, AT)
    nets = [(w, r, k) for w in WIDTHS for r in RATES for k in (0, 1)]
    for number, (width, rate, copy) in enumerate(nets):
        own = 10 * seed + copy
        net = plain_net(own, (width,), inputs=x.shape[1], outputs=2)
        for stand in trained(net, x, label, steps, own, rate, at=at):
            points.append(tuple(accuracy(stand, *side) for side in sides))
            group.append(number)
    majority, minority = torch.tensor(points, dtype=torch.float64).T
    n, n2 = (len(y) for _, y in sides)
    return subpopulation_curve(majority, minority, n, n2, group=group)


def _coloured(x: Tensor, colour: Tensor) -> Tensor:
    """Return images in the first or the second of two channels."""
    return torch.cat([x * (colour == 0)[:, None], x * (colour == 1)[:, None]], 1)
