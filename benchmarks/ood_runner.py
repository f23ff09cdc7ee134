"""Runs in the environment of pytorch-ood: every detector that it has too, on the same rows."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import formulas
from benchmarks.against import against
from benchmarks.child import MIB, added_peak, resident
from benchmarks.environments import peer_version
from benchmarks.formulas import Rows
from sonde import detect
from sonde.engine import Running
from sonde.tap.model.objectives import kl_uniform
from sonde.tap.model.perturb import perturbed_logits

CLASSES, NEIGHBOUR, FEW = 10, 50, 10
STEEP, BATCH = 10.0, 1024
WARM, STEP = 10.0, 0.05
ALPHA, FILL, BINS = 30.0, 0.05, 50


@dataclass(frozen=True)
class Case:
    """One detector: ours, the peer's, and the formula of both.

    Parameters
    ----------
    ours : callable
        Number of fitted rows to our detector.
    theirs : callable
        The peer's module, the rows and the last layer to scores of the fresh rows.
    formula : callable
        The rows in float64 to scores.
    has_state : bool
        Whether there is anything to fit, and therefore to time.
    scale : callable
        Number of fitted rows and of classes to what the peer's score times it gives ours.
    own : callable or None
        The peer's own definition, where it is another one: the rows in float64 to its scores.
    """

    ours: Callable[[int], Any]
    theirs: Callable[[Any, Rows, nn.Linear], Tensor]
    formula: Callable[[Rows], Tensor]
    has_state: bool = True
    scale: Callable[[int, int], float] = lambda n, classes: 1.0
    own: Callable[[Rows], Tensor] | None = None


def _coverage(peer: Any, r: Rows, head: nn.Linear) -> Tensor:
    """Return the peer's scores of NAC, whose module walks over batches of inputs."""
    leaf = _Leaf()
    full = max(1, round(FILL * len(r.x)))
    model = nn.Sequential(leaf, head)
    detector = peer.NACUE(model, [leaf], m_bins=BINS, alpha=ALPHA, o_star=full)
    detector.fit([(x, None) for x in r.x.split(BATCH)])
    return 1.0 + torch.cat([detector.predict(x) for x in r.fresh.split(BATCH)])


class _Leaf(nn.Module):
    """Gives its input a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach().requires_grad_()


CASES: dict[str, Case] = {
    "Mahalanobis": Case(
        lambda n: detect.Mahalanobis(shrinkage=0.0),
        lambda peer, r, head: (
            peer.Mahalanobis(None).fit_features(r.x, r.label).predict_features(r.fresh)
        ),
        formulas.mahalanobis,
        scale=lambda n, classes: 2.0 * n,
    ),
    "RelativeMahalanobis": Case(
        lambda n: detect.RelativeMahalanobis(shrinkage=0.0),
        lambda peer, r, head: peer.RMD(None).fit_features(r.x, r.label).predict_features(r.fresh),
        formulas.relative_mahalanobis,
        scale=lambda n, classes: float(n),
    ),
    "KNN, all rows": Case(
        lambda n: detect.KNN(k=NEIGHBOUR, m=n),
        lambda peer, r, head: (
            peer.KNN(None, k=NEIGHBOUR).fit_features(r.x, r.label).predict_features(r.fresh)
        ),
        lambda r: formulas.knn(r, NEIGHBOUR),
    ),
    "KNN, default sample": Case(
        lambda n: detect.KNN(k=NEIGHBOUR),
        lambda peer, r, head: (
            peer.KNN(None, k=NEIGHBOUR).fit_features(r.x, r.label).predict_features(r.fresh)
        ),
        lambda r: formulas.knn(r, NEIGHBOUR),
    ),
    "NNGuide, default sample": Case(
        lambda n: detect.NNGuide(k=FEW),
        lambda peer, r, head: (
            peer.NNGuide(None, head, k=FEW).fit_features(r.x, r.label).predict_features(r.fresh)
        ),
        lambda r: formulas.nn_guide(r, FEW),
    ),
    "NNGuide, all rows": Case(
        lambda n: detect.NNGuide(k=FEW, m=n),
        lambda peer, r, head: (
            peer.NNGuide(None, head, k=FEW).fit_features(r.x, r.label).predict_features(r.fresh)
        ),
        lambda r: formulas.nn_guide(r, FEW),
    ),
    "KLMatching": Case(
        lambda n: detect.KLMatching(),
        lambda peer, r, head: (
            peer.KLMatching(None).fit_logits(head(r.x), r.label).predict_logits(head(r.fresh))
        ),
        formulas.kl_matching,
    ),
    "ViM, alpha of the paper": Case(
        lambda n: detect.ViM(principal=CLASSES, alpha="paper", m=n),
        lambda peer, r, head: (
            peer.ViM(None, CLASSES, head.weight, head.bias)
            .fit_features(r.x, r.label)
            .predict_features(r.fresh)
        ),
        lambda r: formulas.vim(r, CLASSES),
        has_state=False,
        own=lambda r: formulas.vim(r, CLASSES, formulas.single_origin(r)),
    ),
    "ViM, default alpha": Case(
        lambda n: detect.ViM(principal=CLASSES),
        lambda peer, r, head: (
            peer.ViM(None, CLASSES, head.weight, head.bias)
            .fit_features(r.x, r.label)
            .predict_features(r.fresh)
        ),
        lambda r: formulas.vim(r, CLASSES),
    ),
    "ReAct": Case(
        lambda n: detect.ReAct(),
        lambda peer, r, head: (
            peer.ReAct(None, head).fit_feature_maps(r.x, r.label).predict_feature_maps(r.fresh)
        ),
        lambda r: formulas.react(r, 0.9),
    ),
    "DICE": Case(
        lambda n: detect.DICE(),
        lambda peer, r, head: (
            peer.DICE(None, head.weight, head.bias, 0.9)
            .fit_features(r.x, r.label)
            .predict_features(r.fresh)
        ),
        lambda r: formulas.dice(r, 0.9),
    ),
    "SHE": Case(
        lambda n: detect.SHE(),
        lambda peer, r, head: (
            peer.SHE(None, head).fit_features(r.x, r.label).predict_features(r.fresh)
        ),
        formulas.she,
    ),
    "FDBD": Case(
        lambda n: detect.FDBD(),
        lambda peer, r, head: peer.fDBD(None, head).fit_features(r.x).predict_features(r.fresh),
        formulas.fdbd,
    ),
    "MSP": Case(
        lambda n: detect.MSP(),
        lambda peer, r, head: peer.MaxSoftmax.score(head(r.fresh)),
        lambda r: -r.probability.amax(1),
        has_state=False,
    ),
    "MaxLogit": Case(
        lambda n: detect.MaxLogit(),
        lambda peer, r, head: peer.MaxLogit.score(head(r.fresh)),
        lambda r: -r.logits(r.fresh).amax(1),
        has_state=False,
    ),
    "Energy": Case(
        lambda n: detect.Energy(),
        lambda peer, r, head: peer.EnergyBased.score(head(r.fresh)),
        lambda r: formulas.energy(r.logits(r.fresh)),
        has_state=False,
    ),
    "Entropy": Case(
        lambda n: detect.Entropy(),
        lambda peer, r, head: peer.Entropy.score(head(r.fresh)),
        formulas.entropy,
        has_state=False,
    ),
    "GEN": Case(
        lambda n: detect.GEN(),
        lambda peer, r, head: peer.GEN.score(head(r.fresh)),
        lambda r: formulas.gen(r, 0.1),
        has_state=False,
        scale=lambda n, classes: float(classes),
    ),
    "GradNorm": Case(
        lambda n: detect.GradNorm(),
        lambda peer, r, head: peer.GradNorm(head, lambda name: name == "weight").predict(r.fresh),
        formulas.grad_norm,
        has_state=False,
    ),
    "ODIN": Case(
        lambda n: detect.ODIN(WARM, STEP),
        lambda peer, r, head: peer.ODIN(head, eps=STEP, temperature=WARM).predict(r.fresh),
        lambda r: formulas.odin(r, WARM, STEP),
        has_state=False,
    ),
    "NAC": Case(
        lambda n: detect.NAC(alpha=ALPHA, fill=FILL, n_bins=BINS),
        _coverage,
        lambda r: formulas.nac(r, formulas.paper_grid(BINS), ALPHA, FILL),
        own=lambda r: formulas.nac(r, formulas.geometric_grid(BINS), ALPHA, FILL, single=True),
    ),
    "ASH": Case(
        lambda n: detect.ASH(),
        lambda peer, r, head: peer.ASH(None, _of_maps(head)).predict_feature_maps(
            r.fresh[:, :, None, None]
        ),
        lambda r: formulas.shaped(r, 0.65, prunes=True),
        has_state=False,
    ),
    "SCALE": Case(
        lambda n: detect.SCALE(remove=0.65),
        lambda peer, r, head: peer.SCALE(None, _of_maps(head)).predict_feature_maps(
            r.fresh[:, :, None, None]
        ),
        lambda r: formulas.shaped(r, 0.65, prunes=False),
        has_state=False,
    ),
}


def _of_maps(head: nn.Linear) -> Callable[[Tensor], Tensor]:
    return lambda maps: head(maps.flatten(1))


def made(n: int, width: int, n_fresh: int) -> tuple[Rows, nn.Linear]:
    """Return positive rows around ten class means, their classes, and a layer that knows them."""
    draw = torch.Generator().manual_seed(0)
    means = torch.randn(CLASSES, width, generator=draw)
    label = torch.randint(CLASSES, (n + n_fresh,), generator=draw)
    x = torch.randn(n + n_fresh, width, generator=draw).add_(means[label]).relu_()
    head = nn.Linear(width, CLASSES).requires_grad_(False)
    seen = means.relu()
    head.weight.copy_((seen - seen.mean(0)) * STEEP / width)
    head.bias.copy_(torch.linspace(-0.5, 0.5, CLASSES) - head.weight @ seen.mean(0))
    return Rows(x[:n].clone(), label[:n], x[n:].clone(), head.weight, head.bias), head


def ours_of(case: Case, r: Rows, head: nn.Linear) -> Tensor:
    """Return our scores of the fresh rows; what is needed of the model is counted with it."""
    detector = case.ours(len(r.x))
    with torch.no_grad():
        read = {c for one in detector.all_reads().values() for c in one.statistic.needs()}
        if "grad" in read:
            return _by_batches(detector, r, head)
        columns = _columns(detector, read, r.x, head)
        rows = columns.pop("x", None)
        if rows is None:  # what only reads logits is fitted on them alone
            rows = next(iter(columns.values()))
        scorer = detector.fit(rows, r.label, head=(head.weight, head.bias), **columns)
        del columns, rows  # as the peer's are gone by now
        needs = detect_needs(detector)
        return scorer.score(**_columns(detector, needs, r.fresh, head))


def _columns(
    detector: Any, needs: Collection[str], x: Tensor, head: nn.Linear
) -> dict[str, Tensor]:
    """Return those of the columns that are made of rows and the last layer."""
    made = {
        "x": lambda: x,
        "logits": lambda: head(x),
        "perturbed_logits": lambda: perturbed_logits(head, (x,), {}, detector.perturbation),
    }
    return {name: make() for name, make in made.items() if name in needs}


def _by_batches(detector: Any, r: Rows, head: nn.Linear) -> Tensor:
    """Return the scores of what reads gradients, batch after batch as the peer does."""
    running = Running(detector)
    for x in r.x.split(BATCH):
        running.update(x, grad=_gradient(x, head))
    scorer: Any = running.result()
    return torch.cat([scorer.score(x, _gradient(x, head)) for x in r.fresh.split(BATCH)])


@torch.enable_grad()
def _gradient(x: Tensor, head: nn.Linear) -> Tensor:
    leaf = x.detach().requires_grad_()
    (found,) = torch.autograd.grad(kl_uniform(head(leaf)), leaf)
    return found


def detect_needs(detector: Any) -> tuple[str, ...]:
    """Return the columns that scoring takes."""
    from sonde.core.instrument import score_needs

    return score_needs(detector)


def theirs_of(case: Case, r: Rows, head: nn.Linear) -> Tensor:
    """Return the peer's scores of the fresh rows."""
    from benchmarks.standin import register

    register()
    from pytorch_ood import detector  # pyright: ignore[reportMissingImports]

    with torch.no_grad():
        return case.theirs(detector, r, head)


def cases() -> dict[str, bool]:
    """Return the detectors by name, and whether each has a state."""
    return {name: case.has_state for name, case in CASES.items()}


def agreement(names: list[str], n: int, width: int, n_fresh: int) -> dict[str, Any]:
    """Return, for each detector, how far ours, the peer's and the formula's scores lie apart.

    Relative to the score, or to the median score where that is larger.
    """
    r, head = made(n, width, n_fresh)
    wide = Rows(*(t.double() if t.is_floating_point() else t for t in vars(r).values()))
    found: dict[str, Any] = {"version": peer_version("pytorch-ood")}
    for name in names:
        case = CASES[name]
        truth = case.formula(wide)
        ours = ours_of(case, r, head).double()
        theirs = theirs_of(case, r, head).double() * case.scale(n, CLASSES)
        pairs = {"apart": (ours, theirs), "ours": (ours, truth), "theirs": (theirs, truth)}
        if case.own is not None:
            pairs["own"] = theirs, case.own(wide)
        found[name] = {what: _relative(a, b) for what, (a, b) in pairs.items()}
    return found


def _relative(a: Tensor, b: Tensor) -> float:
    return float(((a - b).abs() / b.abs().clamp(min=float(b.abs().median()))).max())


def times(shapes: list[dict[str, Any]], rounds: int) -> list[dict[str, Any]]:
    """Return our time to fit and score over the peer's, for each detector and shape."""
    found = []
    for shape in shapes:
        case = CASES[shape["name"]]
        r, head = made(shape["n"], shape["width"], shape["n_fresh"])
        ours, theirs = (partial(arm, case, r, head) for arm in (ours_of, theirs_of))
        found.append(against(ours, theirs, rounds))
    return found


def memory(name: str, n: int, width: int, n_fresh: int, theirs: bool = False) -> dict[str, float]:
    """Return the MiB that a fit and scores add, and all that the process holds beyond the rows."""
    arm = theirs_of if theirs else ours_of
    arm(CASES[name], *made(200, width, 50))  # imports and buffers of libraries
    r, head = made(n, width, n_fresh)
    added = added_peak(lambda: arm(CASES[name], r, head))
    return {"added": added, "beyond": resident() - (r.x.nbytes + r.fresh.nbytes) / MIB}
