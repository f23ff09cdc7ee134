"""Test whether gates protect a model from a sequence of requests to forget.

A toy: a small conv net on digits, four classes asked away one by one. An adapter and the Gaussian
of its gate learn from examples of their own class; the gate's threshold also from other classes.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from sonde.core import Model, Reducer
from sonde.detect import Mahalanobis
from sonde.edit import GatedAdapter, LowRankAdapter, soft_gate
from sonde.metrics import auroc
from sonde.tap import Gate
from sonde_studies._forgetting import items_of_class, world
from sonde_studies._gated_requests import Request, requested
from sonde_studies.arms import note_again, note_for, note_sum
from sonde_studies.study import Claim, Figures, Study, Tick

EARLY, LATE, DIM = "3", "4", 512
CHANNELS = Reducer("mean", axis=1)
OPEN = 0.75
Requests = list[tuple[LowRankAdapter, Gate]]


@final
class GatedAdapterStudy(Study):
    """Four of ten classes to forget one after another, with a small conv net on digits."""

    name = "gated-adapter"
    title = "do requests to forget, one after the other, erode a model less behind gates?"
    paper = "gao2025o3"
    fidelity = (
        "adapters and the penalty on overlap as published; a Gaussian of channel means as the "
        "detector instead of a trained encoder; training examples of all other classes help to set "
        "the gate's threshold; ignorance is taught instead of random answers"
    )
    data = "digits: 1,200 for training, the others for tests; four classes drawn by the seed"
    claims = (
        Claim(
            "gates keep",
            "After four requests the other classes keep more behind gates, which also read rows "
            "of them, than without gates.",
            "difference of accuracy on unseen digits",
            arms=("gates", "no gates"),
        ),
        Claim(
            "no erosion",
            "Behind gates the other classes stay within 2 points.",
            "accuracy after less before, and 0.02",
            arms=("gates", "before"),
        ),
        Claim(
            "forgotten",
            "Behind gates the accuracy on the four classes falls by more than half.",
            "share of the accuracy before that is lost, less 0.5",
        ),
        Claim(
            "first stays forgotten",
            "What the first request forgot is forgotten after the updates and parameters of the "
            "fourth, to 5 points.",
            "accuracy after the first less that after the fourth, and 0.05",
            arms=("gates", "first"),
        ),
    )
    null = Claim(
        "detector on chance",
        "A detector cannot tell random halves of unseen digits of other classes.",
        "AUROC",
        above=0.5,
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a net, forget four classes, and evaluate with and without gates."""
        tick("train")
        model, x, label, n = world(seed, tiny)
        asked = torch.randperm(10, generator=torch.Generator().manual_seed(seed))[:4].tolist()
        done: Requests = []
        for kind in asked:
            tick(f"request {len(done) + 1}")
            done.append(_request(model, x[:n], label[:n], kind, done, 2 if tiny else 20, seed))
        note_for("before", updates=0)
        note_again("first", "request 1")
        note_sum("no gates", [f"request {i + 1}" for i in range(len(asked))])
        note_again("gates", "no gates")
        own_rows = torch.isin(label[:n], torch.tensor(asked)).sum()
        for name, rows_read in (("first", n), ("gates", n), ("no gates", int(own_rows))):
            note_for(name, rows=rows_read)
        fresh, truth = x[n:], label[n:]
        told = {
            "before": _said(model, [], fresh),
            "first": _said(model, done[:1], fresh),
            "gates": _said(model, done, fresh),
            "no gates": _said(model, [(one, None) for one, _ in done], fresh),
        }
        own = torch.isin(truth, torch.tensor(asked))
        right = {name: (said == truth).double() for name, said in told.items()}
        on = {name: float(one[own].mean()) for name, one in right.items()}
        off = {name: float(one[~own].mean()) for name, one in right.items()}
        first = truth == asked[0]
        with torch.no_grad():
            score = done[0][1].scorer.score(_rows(model.module, fresh[~own]))
        half = torch.rand(len(score), generator=torch.Generator().manual_seed(seed)) < 0.5
        return {
            "gates keep": off["gates"] - off["no gates"],
            "no erosion": off["gates"] - off["before"] + 0.02,
            "forgotten": 0.5 - on["gates"] / on["before"],
            "first stays forgotten": float((right["first"] - right["gates"])[first].mean()) + 0.05,
            "detector on chance": float(auroc(score.double(), half, resamples=10).value),
            **{f"asked away | {name}": value for name, value in on.items()},
            **{f"other classes | {name}": value for name, value in off.items()},
        }


def _request(
    model: Model, x: Tensor, label: Tensor, kind: int, done: Requests, epochs: int, seed: int
) -> tuple[LowRankAdapter, Gate]:
    """Return the adapter and the gate of one class."""
    rule, forget = GatedAdapter(epochs=epochs, seed=seed), items_of_class(model, x, label, kind)
    earlier = [one for one, _ in done]
    adapter = rule.learn(model, LATE, DIM, forget, earlier=earlier, progress=False)
    with torch.no_grad():
        rows = _rows(model.module, x)
        own = label == kind
        scorer = Mahalanobis().fit(rows[own])
        score = scorer.score(rows)
    return adapter, soft_gate(scorer, score[~own], score[own], EARLY, CHANNELS, open_for=OPEN)


def _rows(module: nn.Module, x: Tensor) -> Tensor:
    """Return the input of the gate: channel means of the last map."""
    assert isinstance(module, nn.Sequential)
    return module[: int(EARLY) + 1](x).mean((2, 3))


@torch.no_grad()
def _said(model: Model, requests: Sequence[Request], x: Tensor) -> Tensor:
    """Return the answers after some requests."""
    with requested(model, requests, LATE):
        return model.module(x).argmax(1)
