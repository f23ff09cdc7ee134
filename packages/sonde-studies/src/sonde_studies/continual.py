"""Tasks learned one after the other: what projecting updates off old inputs keeps.

Five pairs of digits and one head for all. Larger nets and more tasks fill the subspaces sooner.
"""

from contextlib import nullcontext
from statistics import fmean
from typing import Any, final

import torch
from torch import Tensor, nn

from sonde.train import SubspaceProjection
from sonde_studies._recipe_data import mlp, shuffled_digits
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn

FIT, EPOCHS, TINY, PAIRS = 1_200, 8, 1, 5


@final
class ContinualStudy(Study):
    """Two new digits at a time, with plain steps and with projected ones."""

    name = "continual"
    title = "does projecting updates off the inputs of old tasks keep what was learned?"
    paper = "saha2021gpm"
    fidelity = "gradient projection memory on the update; no gate that admits helpful old inputs"
    data = "digits: five tasks of two classes; each task's own pair of logits is asked"
    claims = (
        Claim(
            "kept",
            "With projection old tasks lose less.",
            "backward transfer, projected less plain",
        ),
        Claim(
            "average",
            "And the mean accuracy over all tasks in the end is higher.",
            "accuracy after the last task, projected less plain",
        ),
        Claim(
            "new",
            "New tasks are learned as well, to two points.",
            "accuracy right after each task, projected less plain, and 0.02",
        ),
    )
    null = Claim(
        "random",
        "Projecting off random directions, as many, keeps nothing.",
        "backward transfer, random less plain",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Learn the tasks with each rule."""
        x, label = shuffled_digits(seed)
        order = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
        tasks = [torch.isin(label, order[2 * i : 2 * i + 2]) for i in range(PAIRS)]
        found: dict[str, dict[str, float]] = {}
        for rule in ("plain", "projected", "random"):
            tick(rule)
            found[rule] = _learned(rule, x, label, tasks, seed, TINY if tiny else EPOCHS)
        plain, kept, random = (found[r] for r in ("plain", "projected", "random"))
        return {
            "kept": kept["backward"] - plain["backward"],
            "average": kept["average"] - plain["average"],
            "new": kept["new"] - plain["new"] + 0.02,
            "random": random["backward"] - plain["backward"],
            **{f"{rule} | {name}": v for rule, row in found.items() for name, v in row.items()},
        }


def _learned(
    rule: str, x: Tensor, label: Tensor, tasks: list[Tensor], seed: int, epochs: int
) -> dict[str, float]:
    """Return the mean accuracy after the last task, right after each, and the change between."""
    net, memory = drawn(lambda: mlp(64, 100), seed), SubspaceProjection(0.97)
    first, last = torch.zeros(PAIRS), torch.zeros(PAIRS)

    def accuracy(task: int) -> float:
        rows = tasks[task].clone()
        rows[:FIT] = False
        classes = label[tasks[task]].unique()
        said = classes[net(x[rows])[:, classes].argmax(1)]
        return float((said == label[rows]).double().mean())

    for i in range(PAIRS):
        rows = torch.nonzero(tasks[i][:FIT]).flatten()
        optimiser: Any = torch.optim.SGD(net.parameters(), 0.1)
        guard = memory.on(net, optimiser) if i and rule != "plain" else nullcontext()
        with guard:
            for _ in range(epochs):
                for part in rows.split(16):
                    optimiser.zero_grad()
                    nn.functional.cross_entropy(net(x[part]), label[part]).backward()
                    optimiser.step()
        if rule != "plain":
            memory.remember(net, [x[rows]])
        if rule == "random":
            draw = torch.Generator().manual_seed(seed + i)
            memory.known = {
                name: torch.linalg.qr(torch.randn(basis.shape, generator=draw).double())[0]
                for name, basis in memory.known.items()
            }
        first[i] = accuracy(i)
    for i in range(PAIRS):
        last[i] = accuracy(i)
    return {
        "average": float(last.mean()),
        "new": float(first.mean()),
        "backward": fmean((last - first)[:-1].tolist()),
    }
