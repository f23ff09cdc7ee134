"""Test whether a narrow bottleneck predicts that a net generalises to new rows.

Nets of several widths, depths, weight decays and numbers of rows; degree and gap of each. The
absolute form adds one noise to every net, so it sees the scale of the states. The null arm needs
nets of its own: pairs of one shape that share neither weights, batches nor split.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any, final

import numpy as np
from scipy.stats import kendalltau  # pyright: ignore[reportMissingTypeStubs]

from sonde.measure import bottleneck_degree
from sonde_studies._layers import layers_of, loss, plain_net, split, trained
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick

WIDTHS, DEPTHS, DECAYS, ROWS, STEPS = (16, 64), (1, 2, 3), (0.0, 1.0), (150, 300, 600), 500
NOISE, PAIRS = 1.0, 16
ALIKE = (16, 2, 0.0, 150)
"""Width, depth, weight decay and rows of the nets of the null arm."""
FORMS = {
    "relative": {},
    "relative, mc": {"estimator": "mc"},
    "absolute": {"noise": NOISE, "relative": False},
    "absolute, mc": {"noise": NOISE, "relative": False, "estimator": "mc"},
}


@final
class BottleneckDegreeStudy(Study):
    """36 ReLU nets, and the degree of their last hidden layer on the training rows."""

    name = "bottleneck-degree"
    title = "does a narrow bottleneck go with a small gap between learned and fresh rows?"
    paper = "kawaguchi2023bottleneck"
    fidelity = (
        "the bounds as published; noise relative to the layer's variance (ours), and one absolute "
        "noise for all nets, where the original chooses it from a grid by likelihood"
    )
    data = "scikit-learn's digits; 36 nets: width, depth, weight decay, rows"
    claims = (
        *(
            Claim(
                form,
                f"A smaller degree ({form}) goes with a smaller gap.",
                "Kendall's tau of degree and gap of cross entropy",
            )
            for form in FORMS
        ),
        Claim(
            "beside the norm",
            "The absolute form tells the gap better than the norm of the weights.",
            "difference of Kendall's tau",
            arms=("absolute", "norm"),
        ),
        Claim(
            "equal rows",
            "Among nets that learned as many rows, a smaller degree (relative, mc) still does.",
            "Kendall's tau, mean over numbers of rows",
        ),
    )
    null = Claim(
        "other net",
        "Among nets of one shape, the degree of one does not predict the gap of another.",
        f"Kendall's tau of degree (relative, mc) and another net's gap, {PAIRS} pairs",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train the grid of nets and rank them."""
        depths, sizes = (DEPTHS[:2], ROWS[:2]) if tiny else (DEPTHS, ROWS)
        grid = list(product(WIDTHS, depths, DECAYS, sizes))
        found: list[dict[str, float]] = []
        for number, shape in enumerate(grid):
            tick(f"net {number + 1} of {len(grid)}")
            found.append(_figures(shape, 1000 * seed + number, tiny))
        alike: list[dict[str, float]] = []
        for number in range(2 * (3 if tiny else PAIRS)):
            tick(f"net {number + 1} of one shape")
            alike.append(_figures(ALIKE, 1000 * seed + len(grid) + number, tiny))
        columns = {name: np.array([f[name] for f in found]) for name in found[0]}
        gap = columns.pop("gap")
        tau = {name: _tau(column, gap) for name, column in columns.items()}
        for name in tau:
            note_for(name, rows=len(grid))
        within = [columns["rows"] == rows for rows in sizes]
        # The nets of a pair are independent, and no net is in two pairs: the mean of tau is 0.
        one, other = alike[::2], alike[1::2]
        null = _tau([f["relative, mc"] for f in one], [f["gap"] for f in other])
        return {
            **{form: tau[form] for form in FORMS},
            "beside the norm": tau["absolute"] - tau["norm"],
            "equal rows": float(
                np.mean([_tau(columns["relative, mc"][at], gap[at]) for at in within])
            ),
            "other net": null,
            **{f"tau | {name}": v for name, v in tau.items()},
            "gap | mean": float(gap.mean()),
        }


def _figures(shape: tuple[int, int, float, int], seed: int, tiny: bool) -> dict[str, float]:
    """Train a net with a split, weights and batches of its own, and return its figures."""
    width, depth, decay, rows = shape
    d, net = split(seed, rows), plain_net(seed, (width,) * depth)
    *_, net = trained(net, d.x, d.label, 30 if tiny else STEPS, seed, rate=3e-3, decay=decay)
    last = layers_of(net, d.x)[-1]
    norm = sum(float(p.detach().square().sum()) for p in net.parameters()) ** 0.5
    return {
        "depth": depth,
        "width": width,
        "rows": rows,
        "gap": loss(net, d.x_test, d.label_test) - loss(net, d.x, d.label),
        "norm": norm,
        **{form: float(bottleneck_degree(last, d.label, **o)) for form, o in FORMS.items()},
    }


def _tau(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    tau: Any = kendalltau(x, y)[0]
    return float(tau)
