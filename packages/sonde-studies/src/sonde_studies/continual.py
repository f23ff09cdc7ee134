"""Continual learning with updates that are projected off old inputs.

Five pairs of digits and one head for all. Larger nets and more tasks fill the subspaces sooner.
"""

from typing import final

import torch
from torch import Tensor

from sonde_studies._recipe_data import shuffled_digits
from sonde_studies._tasks_in_turn import PAIRS, RULES, learned_in_turn
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick

EPOCHS, TINY = 8, 1


@final
class ContinualStudy(Study):
    """Two new digits at a time, with plain or projected steps, and a head of descriptions."""

    name = "continual"
    title = "does projecting updates off the inputs of old tasks keep what was learned?"
    paper = "saha2021gpm"
    fidelity = "gradient projection on the update, CUBER's conditions, penalty and scaled weights"
    data = "digits: five tasks of two classes; each task's own pair of logits is asked"
    claims = (
        Claim(
            "kept",
            "With projection old tasks lose less.",
            "backward transfer, projected less plain",
            arms=("projected", "plain"),
        ),
        Claim(
            "average",
            "And the mean accuracy over all tasks in the end is higher.",
            "accuracy after the last task, projected less plain",
            arms=("projected", "plain"),
        ),
        Claim(
            "new",
            "New tasks are learned as well, to two points.",
            "accuracy right after each task, projected less plain, and 0.02",
            arms=("projected", "plain"),
        ),
        Claim(
            "gate",
            "Where old tasks that meet both conditions admit updates, they gain from new ones.",
            "backward transfer, projected with the gate less without",
            arms=("gated", "projected"),
        ),
        Claim(
            "share",
            "With both conditions less is lost than where the cosine alone admits.",
            "backward transfer, both conditions less cosine alone",
            arms=("gated", "cosine alone"),
        ),
        Claim(
            "penalty",
            "A penalty on what admitted weights move keeps more.",
            "backward transfer, gate with the penalty less gate",
            arms=("penalty", "gated"),
        ),
        Claim(
            "scaled",
            "With gate, penalty and scaled weights for tasks that disagree, new ones do better.",
            "accuracy right after each task, scaled less projected",
            arms=("scaled", "projected"),
        ),
        Claim(
            "scaled average",
            "And the mean accuracy over all tasks in the end is higher than with projection alone.",
            "accuracy after the last task, scaled less projected",
            arms=("scaled", "projected"),
        ),
        Claim(
            "trust",
            "Weights scaled along old inputs do better than along as many random directions.",
            "accuracy after the last task, scaled less scaled at random",
            arms=("scaled", "scaled at random"),
        ),
        Claim(
            "adapters",
            "Where adapters and head alone move after the first task, less is lost.",
            "backward transfer, adapters (a third more parameters, of which fewer move after the "
            "first task) less plain",
            arms=("adapters", "plain"),
        ),
        Claim(
            "teacher",
            "Less still where a slow average of the net pulls at their states.",
            "backward transfer, adapters with the average as teacher less adapters",
            arms=("slow teacher", "adapters"),
        ),
        Claim(
            "rising",
            "Less still where the pull grows from task to task, from 0.4 to 1.6.",
            "backward transfer, slow average with a growing weight less with a constant one of 1",
            arms=("rising teacher", "slow teacher"),
        ),
        Claim(
            "text",
            "A head whose classes are frozen descriptions loses less than a learned head.",
            "backward transfer, frozen descriptions less learned head, each at its own rate",
            arms=("text", "plain, own rate"),
        ),
        Claim(
            "meaning",
            "And less than a head of as many frozen random vectors.",
            "backward transfer, frozen descriptions less frozen random vectors",
            arms=("text", "vectors"),
        ),
        Claim(
            "directions",
            "Projecting off random directions, as many, keeps less than off those of old inputs.",
            "backward transfer, projected less random",
            arms=("projected", "random"),
        ),
    )
    null = Claim(
        "lots",
        "Labels by lot are not told of other rows.",
        "accuracy right after each task, projected, less 0.5",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Learn the tasks with each rule."""
        x, label = shuffled_digits(seed)
        tasks = _tasks(label, seed)
        found: dict[str, dict[str, float]] = {}
        for rule in RULES:
            tick(rule)
            found[rule] = learned_in_turn(rule, x, label, tasks, seed, TINY if tiny else EPOCHS)
        tick("labels by lot")
        lots = by_lot(x, seed, TINY if tiny else EPOCHS)
        back = {rule: row["backward"] for rule, row in found.items()}
        plain, kept, scaled = found["plain"], found["projected"], found["scaled"]
        return {
            "kept": back["projected"] - back["plain"],
            "average": kept["average"] - plain["average"],
            "new": kept["new"] - plain["new"] + 0.02,
            "gate": back["gated"] - back["projected"],
            "share": back["gated"] - back["cosine alone"],
            "penalty": back["penalty"] - back["gated"],
            "scaled": scaled["new"] - kept["new"],
            "scaled average": scaled["average"] - kept["average"],
            "trust": scaled["average"] - found["scaled at random"]["average"],
            "adapters": back["adapters"] - back["plain"],
            "teacher": back["slow teacher"] - back["adapters"],
            "rising": back["rising teacher"] - back["slow teacher"],
            "text": back["text"] - back["plain, own rate"],
            "meaning": back["text"] - back["vectors"],
            "directions": back["projected"] - back["random"],
            "lots": lots,
            **{f"{rule} | {name}": v for rule, row in found.items() for name, v in row.items()},
        }


def by_lot(x: Tensor, seed: int, epochs: int) -> float:
    """Return the accuracy right after each task on labels by lot, less that of chance."""
    lots = labels_by_lot(x, 10, seed)
    return learned_in_turn("projected", x, lots, _tasks(lots, seed), seed, epochs)["new"] - 0.5


def _tasks(label: Tensor, seed: int) -> list[Tensor]:
    """Return which rows each task has: pairs of labels in a random order."""
    order = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
    return [torch.isin(label, order[2 * i : 2 * i + 2]) for i in range(PAIRS)]
