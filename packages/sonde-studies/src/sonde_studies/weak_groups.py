"""Test whether weak groups found on some handwriting are weak on unseen rows."""

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sonde.metrics import WeakGroup, weak_groups
from sonde_studies._digits import shuffled, train
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick

FIT, STEPS, RATE, HIDDEN = 60, 150, 3e-3, 2
Rows = Bool[Tensor, "row"]


@final
class WeakGroupsStudy(Study):
    """A net trained on few digits; groups found on half of the others, tested on the rest."""

    name = "weak-groups"
    title = "are groups that are weak on some digits weak on fresh ones?"
    fidelity = "our own rule, no paper; groups and their number were chosen on the looked-at half"
    data = "digits: 60 to learn, half of the others to look for groups, the rest fresh"
    claims = (
        Claim(
            "fresh gap",
            "Fresh members of confirmed groups are wrong 10 points more than others (none: 0).",
            "difference of shares",
            above=0.1,
            arms=("members", "others"),
        ),
        Claim(
            "errors held",
            "The groups hold more of the fresh errors than of the fresh rows, by 15 points.",
            "share of errors less share of rows",
            above=0.15,
            arms=("members", "others"),
        ),
        Claim(
            "promise",
            "The gap on fresh rows is more than half of the largest that was confirmed (none: 0).",
            "fresh gap less half of the confirmed one",
        ),
    )
    null = Claim(
        "null",
        "With errors in random order the group that looked worst is no worse on fresh rows.",
        "difference of shares",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train, search for groups on one half, measure on the other."""
        draw = torch.Generator().manual_seed(seed)
        x, label = (v[: 900 if tiny else None] for v in shuffled(draw))
        net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        net = nn.Sequential(*net, nn.Linear(32, 10))
        tick("training")
        train(net, x[:FIT], label[:FIT], seed, STEPS, RATE)
        x, label = x[FIT:], label[FIT:]
        with torch.no_grad():
            states, answer = net[:HIDDEN](x), net(x).argmax(1)
        wrong = (answer != label).double()
        known = {
            "ink": x.sum(1).double(),
            "states": states,
            "answer": answer.tolist(),
            "label": label.tolist(),
        }
        half = torch.arange(len(x)) < len(x) // 2
        tick("looking for groups")
        found = _looked(wrong, known, half, 0.1, seed)
        for name in ("members", "others"):
            note_for(name, rows=len(x) - len(x) // 2)
        inside = _any(found, known) & ~half
        gap = _gap(wrong, inside, ~half & ~inside)
        confirmed = max((g.loss - g.elsewhere for g in found), default=0.0)
        fresh_errors = float(wrong[~half].sum())
        held = float(wrong[inside].sum()) / fresh_errors
        mixed = wrong[torch.randperm(len(wrong), generator=draw)]
        worst = _looked(mixed, known, half, -math.inf, seed)[:1]
        by_chance = _any(worst, known) & ~half
        return {
            "fresh gap": gap,
            "errors held": held - float(inside.double().sum()) / float((~half).sum()),
            "promise": gap - confirmed / 2,
            "null": _gap(mixed, by_chance, ~half & ~by_chance),
            "groups": float(len(found)),
            "errors, all fresh rows": float(wrong[~half].mean()),
        }


def _looked(
    wrong: Float[Tensor, "row"], known: dict[str, Any], half: Rows, gap: float, seed: int
) -> list[WeakGroup]:
    """Return the groups that are confirmed within the search half."""
    rows = torch.nonzero(half).flatten()
    return weak_groups(
        wrong[rows],
        torch.arange(len(rows)),
        {"ink": known["ink"][rows]},
        {"states": known["states"][rows]},
        label=[known["label"][i] for i in rows.tolist()],
        answer=[known["answer"][i] for i in rows.tolist()],
        gap=gap,
        seed=seed,
    )


def _any(groups: Sequence[WeakGroup], known: dict[str, Any]) -> Rows:
    """Return the mask of all rows in one of the groups."""
    n = len(known["answer"])
    found = torch.zeros(n, dtype=torch.bool)
    for group in groups:
        holds = [condition.holds(known[condition.source]) for condition in group.conditions]
        found |= torch.stack(holds).all(0)
    return found


def _gap(wrong: Float[Tensor, "row"], inside: Rows, outside: Rows) -> float:
    """Return the error rate inside minus that outside; 0 if no row is inside."""
    if not bool(inside.any()):
        return 0.0
    return float(wrong[inside].mean() - wrong[outside].mean())
