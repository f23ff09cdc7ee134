"""Test whether a shared net with low-rank routed experts keeps what merging loses.

A toy: experts on quarter turns, or on two classes each, of digits. What came out (ten seeds):
turned, branches of rank 2% reach .71 and of 10% .88, where the experts have .92 and task arithmetic
.61; TIES is 2 points below arithmetic, of them most also with nothing trimmed. Split by class
nearly all of the gain (.90 to .97) is the router's: the same shared net with the classes of other
experts excluded reaches .967, branches of any rank .974. Opened all alike, branches are worth
nothing.
"""

from statistics import fmean
from typing import Any, final

import torch
from torch import Tensor, nn

from sonde.edit import LinearRouter, TaskArithmetic, Ties, TwinMerge
from sonde.stats import ClassMoments
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.experts import KINDS, TRAIN, WAYS, Experts, experts

LAYERS = 5
"""They come before the state that the router reads."""
WEIGHTS, RANKS = (0.1, 0.2, 0.3, 0.5, 1.0), (0.02, 0.1, 1.0)
FIGURE = "difference of accuracy, mean of both splits"


@final
class TwinMergeStudy(Study):
    """Small conv nets: five experts of two digits each, or four of a rotation each."""

    name = "twin-merge"
    title = "do thin routed branches keep what merging loses?"
    paper = "lu2024twin"
    fidelity = (
        "toy size: nets of 38,000 weights for language and vision transformers; rank 2% is one or "
        "two directions of a layer; the router is the linear discriminant of the shared net's "
        "states where the original trains a small net; arithmetic and TIES get the weight that is "
        "best on training digits, the branches stand beside arithmetic at its default 0.3"
    )
    data = "digits: 1,000 for training, 797 for tests; split by class, or turned by 0 to 3 quarters"
    claims = (
        Claim(
            "over arithmetic",
            "Branches of rank 2%, which add parameters and a pass that "
            "routes, beat task arithmetic.",
            FIGURE,
            arms=("rank 2%", "arithmetic"),
        ),
        Claim(
            "recovers",
            "Branches of rank 10% keep more than 95% of the accuracy of the experts.",
            "share of the accuracy of each digit's own expert, mean of both splits",
            above=0.95,
        ),
        Claim("ties between", "TIES beats task arithmetic.", FIGURE, arms=("TIES", "arithmetic")),
        Claim(
            "branches over router",
            "Split by class, they beat the shared net, without their parameters, where the "
            "router alone excludes the classes of other experts.",
            "difference of accuracy",
            arms=("rank 10%", "router alone"),
        ),
    )
    null = Claim(
        "null",
        "A router that is fitted to experts dealt out at random names them by chance.",
        "share of dealt experts that it names less chance, mean of both splits",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train experts of both splits, and merge them in every way."""
        found: dict[str, float] = {}
        for way in WAYS:
            tick(f"experts, {way}")
            split = experts(way, seed, tiny)
            tick(f"merge, {way}")
            figures = _merges(split, seed)
            found |= {f"{name} | {way}": value for name, value in figures.items()}

        def mean(name: str) -> float:
            return fmean(found[f"{name} | {way}"] for way in WAYS)

        kept = [found[f"rank 10% | {way}"] / found[f"own expert | {way}"] for way in WAYS]
        return {
            "over arithmetic": mean("rank 2%") - mean("arithmetic"),
            "recovers": fmean(kept),
            "ties between": mean("TIES") - mean("arithmetic"),
            "branches over router": found["rank 10% | classes"] - found["router alone | classes"],
            "null": mean("routed right if dealt, less chance"),
            **found,
        }


@torch.no_grad()
def _merges(split: Experts, seed: int) -> dict[str, float]:
    """Return the accuracy of every way to merge, and of the router."""
    found = {"base": split.right(split.base)}
    expert, n = split.expert[TRAIN:], len(split.nets)
    said = torch.stack([net(split.x[TRAIN:]).argmax(1) for net in split.nets])
    own = said.gather(0, expert[None])[0] == split.label[TRAIN:]
    found["own expert"] = float(own.double().mean())
    rules: dict[str, Any] = {
        "arithmetic": TaskArithmetic,
        "TIES": lambda weight: Ties(weight=weight),
        "TIES, nothing trimmed": lambda weight: Ties(1.0, weight),
    }
    for name, rule in rules.items():
        nets = [split.merged(rule(weight)) for weight in WEIGHTS]
        found[name] = split.right(max(nets, key=lambda net: split.right(net, slice(TRAIN))))
        note_for(name, rows=TRAIN, parameters=_size(split.base), passes=1)
    shared = split.merged(TaskArithmetic())
    router, found["routed right"] = _router(split, shared, split.expert)
    draw = torch.Generator().manual_seed(1000 + seed)
    dealt = split.expert[torch.randperm(len(split.x), generator=draw)]
    found["routed right if dealt, less chance"] = _router(split, shared, dealt)[1] - 1 / n
    for rank in RANKS:
        twin = TwinMerge(rank).join(split.base, split.nets, lambda _: router)
        found[f"rank {rank:.0%}"] = split.right(twin)
        note_for(f"rank {rank:.0%}", rows=TRAIN, parameters=_size(twin), passes=2)
        if rank == RANKS[1]:
            with twin.routed(torch.full((len(expert), n), 1 / n)):
                found["rank 10%, all branches alike"] = split.right(twin.model)
    note_for("router alone", rows=TRAIN, parameters=_size(shared), passes=2)
    return found | {"router alone": _restricted(split, shared, router)}


def _size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def _restricted(split: Experts, shared: Any, router: LinearRouter) -> float:
    """Return the shared net's accuracy among the classes of the routed expert."""
    x, label = split.x[TRAIN:], split.label[TRAIN:]
    knows = torch.zeros(len(split.nets), KINDS, dtype=torch.bool)
    knows[split.expert, split.label] = True
    routed = knows[router(shared[:LAYERS](x)).argmax(1)]
    return float((shared(x).masked_fill(~routed, -torch.inf).argmax(1) == label).double().mean())


def _router(split: Experts, shared: Any, expert: Tensor) -> tuple[LinearRouter, float]:
    """Return a router of the shared net, and its accuracy on test digits."""
    rows = shared[:LAYERS](split.x)
    state = ClassMoments().observe(rows[:TRAIN], expert[:TRAIN])
    router = LinearRouter.of(state, str(LAYERS - 1))
    named = router(rows[TRAIN:]).argmax(1) == expert[TRAIN:]
    return router, float(named.double().mean())
