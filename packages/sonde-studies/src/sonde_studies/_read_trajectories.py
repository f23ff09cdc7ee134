"""Trajectories of the calculator world, and the states of their steps in a model of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde import Model, read
from sonde_studies._language import LAYERS, language_model, tokens_of, train
from sonde_studies.worlds import Calculator, Trajectory, build_trajectories, solve
from sonde_studies.worlds.perturb import MOST_EXTRAS, Kind

SHORTEST, LONGEST, TASK_ENDS = 2, 5, "Report"


WORDS = [
    *map(str, range(1001)),
    *"abcd",
    *(f"v{i + 1}" for i in range(LONGEST)),
    *"+-*",
    *("add", "subtract", "multiply", TASK_ENDS, "report", "reported"),
]


STEPS, CONTEXT = 500, 96


EVERY = [f"transformer.h.{i}" for i in range(LAYERS)]
SITE, MORE = EVERY[-1], 4


UNKNOWN_STEP = -2


@dataclass(frozen=True)
class Steps:
    """The states of the steps of trajectories.

    Parameters
    ----------
    x : Float[Tensor, "step dim"]
    position, trajectory : Int[Tensor, "step"]
        The number of the step, and of its trajectory.
    first_error : Int[Tensor, "step"]
        The first wrong step of the trajectory, or -1.
    """

    x: Float[Tensor, "step dim"]
    position: Int[Tensor, "step"]
    trajectory: Int[Tensor, "step"]
    first_error: Int[Tensor, "step"]

    @property
    def is_first(self) -> Tensor:
        """True for steps that are the first wrong step."""
        return self.position == self.first_error

    @property
    def wrong(self) -> Tensor:
        """True for trajectories, in ascending order, that have a wrong step."""
        return self.highest((self.first_error >= 0).double()) > 0

    def highest(self, score: Float[Tensor, "step"]) -> Float[Tensor, "trajectory"]:
        """Return the highest score of each trajectory, in ascending order."""
        n = int(self.trajectory.max()) + 1
        low = torch.full((n,), -torch.inf, dtype=torch.float64)
        return low.scatter_reduce(0, self.trajectory, score.double(), "amax")

    def vague(self) -> "Steps":
        """Replace the step labels by labels of whole trajectories."""
        unknown = torch.full_like(self.first_error, UNKNOWN_STEP)
        return replace(
            self, first_error=torch.where(self.first_error >= 0, unknown, self.first_error)
        )


def reader_of(seed: int, steps: int) -> Model:
    """Return a language model trained on correct trajectories."""
    model = language_model(WORDS, CONTEXT, seed)
    source = Random(seed)

    def texts(n: int) -> list[str]:
        return [text_of(solve(world, world.draw(source), "")) for _ in range(n)]

    world = Calculator(SHORTEST, LONGEST)
    train(model, texts, steps, after=TASK_ENDS)
    return model


def text_of(trajectory: Trajectory) -> str:
    return "\n".join([trajectory.task, *step_texts(trajectory)])


def step_texts(trajectory: Trajectory) -> list[str]:
    return [f"{step.action} {step.observation}" for step in trajectory.steps]


def faultless(n: int, seed: str) -> list[Trajectory]:
    world, source = Calculator(SHORTEST, LONGEST), Random(seed)
    return [solve(world, world.draw(source), f"{seed} {i}") for i in range(n)]


def pairs_of_kind(kind: Kind, n: int, seed: int) -> list[Trajectory]:
    """Return pairs of a correct and a wrong trajectory of one error kind.

    Programs are two shorter where actions after the end follow, so that these name no value that
    the model has never read of.
    """
    world = Calculator(SHORTEST, LONGEST - MOST_EXTRAS if kind == "III" else LONGEST)
    return list(build_trajectories(n, worlds=[world], kinds=[kind], seed=seed).trajectories)


def pairs_of(n: int, seed: int) -> dict[str, list[Trajectory]]:
    """Return pairs of correct and wrong trajectories, with the rest recomputed or unchanged."""
    made = pairs_of_kind("I", n, seed)
    direct: list[Trajectory] = []
    for clean, wrong in zip(made[::2], made[1::2], strict=True):
        place = wrong.first_error
        steps = (*clean.steps[:place], wrong.steps[place], *clean.steps[place + 1 :])
        direct += [clean, replace(wrong, steps=steps)]
    return {"direct": direct, "completed": made}


def steps_of(
    model: Model, trajectories: Sequence[Trajectory], sites: Any = SITE, reducer: str = "steps"
) -> Steps:
    """Return the state of each step, by default the mean at the last layer; sites concatenated."""
    rows: list[dict[str, Any]] = [
        {
            "id": str(i),
            "instruction": t.task,
            "steps": [{"text": text} for text in step_texts(t)],
            "label": t.label,
            "first_error": t.first_error,
        }
        for i, t in enumerate(trajectories)
    ]
    x: dict[str, list[Tensor]] = {}
    places: dict[str, list[tuple[int, int]]] = {}
    for batch in read(model, rows, sites=sites, reducer=reducer):
        for key, row in batch.rows.items():
            x.setdefault(key, []).append(row)
            names = (int(batch.ids[int(i)]) for i in batch.example[key].tolist())
            here = zip(names, batch.position[key].tolist(), strict=True)
            places.setdefault(key, []).extend(here)
    order = {key: sorted(range(len(p)), key=p.__getitem__) for key, p in places.items()}
    states = torch.cat([torch.cat(rows)[order[key]] for key, rows in x.items()], dim=1)
    where = torch.tensor(sorted(next(iter(places.values()))))
    first = torch.tensor([t.first_error for t in trajectories])
    return Steps(states.double(), where[:, 1], where[:, 0], first[where[:, 0]])


def surprises(model: Model, trajectories: Sequence[Trajectory]) -> Float[Tensor, "step"]:
    """Return minus the log-probability of the least likely token of each step."""
    found: list[Tensor] = []
    for t in trajectories:
        lengths = [len(ids) for ids in model.processor([t.task, *step_texts(t)])["input_ids"]]
        ids = tokens_of(model, [text_of(t)])
        with torch.no_grad():
            chances = model.module(ids).logits[0, :-1].log_softmax(1)
        surprise = -chances.gather(1, ids[0, 1:, None])[:, 0]
        found += [part.max() for part in surprise.split([lengths[0] - 1, *lengths[1:]])[1:]]
    return torch.stack(found).double()
