"""Explanations in turns, to simulated users who understand some concepts and learn others.

The explanations are fault lines of a net of digits. A machine asks, hears, and shows the next one;
with a model of the user, without hearing the answers, or in an order by lot.
"""

from typing import final

import torch
from torch import Tensor

from sonde.explain import FaultLines, UserModel
from sonde.metrics import auroc
from sonde_studies._digits import encoder, shuffled
from sonde_studies.arms import note
from sonde_studies.study import Claim, Figures, Study, Tick

N, WIDTH, STEPS, CONCEPTS = 1_200, 64, 150, 24
SHOWN, JUDGED, TURNS, USERS, TINY = 40, 40, 4, 30, 3
LEARN, SLIP, GUESS = 0.7, 0.1, 0.2
WAYS = ("user model", "deaf", "by lot", "coins")


@final
class ExplainedInTurnsStudy(Study):
    """Four turns with thirty users, who understand some of the concepts from the start."""

    name = "explained-in-turns"
    title = "does a model of the user help to explain in turns?"
    paper = "akula2022cxtom"
    fidelity = "reconstructed: simulated users, whose learning the model knows; no persons"
    data = "digits; fault lines of 80 by 24 directions of a hidden layer, half of them to judge"
    claims = (
        Claim("model", "After four turns a user foresees more of other fault lines than after four "
              "in an order by lot.", "share foreseen, user model less by lot",
              arms=("user model", "by lot")),
        Claim("hears", "Heard answers help the choice: without them a user foresees less.",
              "share foreseen, user model less deaf",
              arms=("user model", "deaf")),
        Claim("knows", "What the machine believes at the end tells which concepts a user "
              "understands.", "AUROC of the beliefs, less 0.7"),
    )  # fmt: skip
    null = Claim("coins", "Users who answer by a coin tell nothing of what they understood.",
                 "AUROC of the beliefs", above=0.5)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Find fault lines of a net, then explain them to simulated users."""
        tick("fault lines")
        lines = _fault_lines(seed, tiny)
        users = TINY if tiny else USERS
        found = dict[str, dict[str, float]]()
        for way in WAYS:
            tick(way)
            note(rows=users * TURNS)
            told = [_dialogue(way, lines[:SHOWN], lines[SHOWN:], seed * 1_000 + i)
                    for i in range(users)]  # fmt: skip
            belief, truth = (torch.cat([one[k] for one in told]) for k in (2, 3))
            found[way] = {
                "foreseen": float(torch.stack([one[0] for one in told]).mean()),
                "foreseen at first": float(torch.stack([one[1] for one in told]).mean()),
                "AUROC": float(auroc(belief.numpy(), truth.numpy(), resamples=2).value),
            }
        foreseen = {way: row["foreseen"] for way, row in found.items()}
        return {
            "model": foreseen["user model"] - foreseen["by lot"],
            "hears": foreseen["user model"] - foreseen["deaf"],
            "knows": found["user model"]["AUROC"] - 0.7,
            "coins": found["coins"]["AUROC"],
            "concepts of a fault line": float(lines.sum(1).double().mean()),
            **{f"{what} | {way}": v for way, row in found.items() for what, v in row.items()},
        }


def _fault_lines(seed: int, tiny: bool) -> Tensor:
    """Return which directions change the answer to each new digit (digit, concept)."""
    x, label = shuffled(torch.Generator().manual_seed(seed))
    net = encoder(x[:N], label[:N], WIDTH, seed, 20 if tiny else STEPS)
    with torch.no_grad():
        hidden = net[1](net[0](x[:N]))
    widest = torch.linalg.svd(hidden - hidden.mean(0), full_matrices=False)[2][:CONCEPTS]
    new = x[N : N + SHOWN + JUDGED]
    far = 1.5 * ((hidden - hidden.mean(0)) @ widest.T).std(0).expand(len(new), -1)
    method = FaultLines(steps=16 if tiny else 60)
    return method.explain(net, new, concepts=widest, site="1", bounds=(-far, far)).change != 0


def _dialogue(
    way: str, lines: Tensor, held: Tensor, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the shares of held fault lines foreseen at the end and at first, beliefs, and truth.

    For ``coins`` the truth is what the user understood at first; else what is understood at last.
    """
    draw = torch.Generator().manual_seed(seed)
    chance = torch.rand((), generator=draw)
    known = torch.rand(CONCEPTS, generator=draw) < chance
    first, user = known.clone(), UserModel(torch.full((CONCEPTS,), 0.5), LEARN, SLIP, GUESS)
    order, left = torch.randperm(len(lines), generator=draw), torch.ones(len(lines)).bool()
    for turn in range(TURNS):
        row = int(order[turn]) if way == "by lot" else user.choose(lines, left)
        left[row] = False
        luck = torch.rand(2, generator=draw)
        understands = bool(known[lines[row]].all())
        right = bool(luck[0] < (1 - SLIP if understands else GUESS))
        if way == "coins":
            right = bool(luck[1] < 0.5)
        user = user if way == "deaf" else user.heard(lines[row], correct=right)
        user = user.shown(lines[row])
        known = known | (lines[row] & (torch.rand(CONCEPTS, generator=draw) < LEARN))
    foreseen = [torch.where(held, now, torch.tensor(True)).all(1).float().mean()
                for now in (known, first)]  # fmt: skip
    return foreseen[0], foreseen[1], user.known, first if way == "coins" else known
