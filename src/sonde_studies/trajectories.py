"""Which wrong steps a verifier of hidden states finds, and what it takes to teach it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde import Model, read
from sonde.detect import Mahalanobis, TrajectoryVerifier
from sonde.metrics import joint_match, localisation, step_f1
from sonde_studies._language import LAYERS, language_model, tokens_of, train
from sonde_studies._separation import area
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds import Calculator, Trajectory, build_trajectories, solve

SHORTEST, LONGEST, TASK_ENDS = 2, 5, "Report"
WORDS = [
    *map(str, range(1001)),
    *"abcd",
    *(f"v{i + 1}" for i in range(LONGEST)),
    *"+-*",
    *("add", "subtract", "multiply", TASK_ENDS, "report", "reported"),
]
STEPS, CONTEXT = 500, 96
FIT, HELD, FRESH, TEST = 250, 200, 200, 150
ALARM, MOST_ALARMS = 0.05, 0.10
SITE = f"transformer.h.{LAYERS - 1}"
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
        """Which steps are first wrong ones."""
        return self.position == self.first_error

    @property
    def wrong(self) -> Tensor:
        """Which trajectories, in ascending order, have a wrong step."""
        return self.highest((self.first_error >= 0).double()) > 0

    def highest(self, score: Float[Tensor, "step"]) -> Float[Tensor, "trajectory"]:
        """Return the highest score of each trajectory, in ascending order."""
        n = int(self.trajectory.max()) + 1
        low = torch.full((n,), -torch.inf, dtype=torch.float64)
        return low.scatter_reduce(0, self.trajectory, score.double(), "amax")

    def vague(self) -> "Steps":
        """Forget which step is wrong."""
        unknown = torch.full_like(self.first_error, UNKNOWN_STEP)
        return replace(
            self, first_error=torch.where(self.first_error >= 0, unknown, self.first_error)
        )


@final
class TrajectoriesStudy(Study):
    """A verifier on states of a small transformer that has read faultless trajectories only.

    ``direct`` puts the wrong step in and leaves all others as they were; ``completed`` goes on from
    it. Both share task, wrong step and clean twin.
    """

    name = "trajectories"
    title = "which wrong steps does a verifier of hidden states find?"
    paper = "liu2026trajad"
    fidelity = (
        "reconstructed: hidden states of a small model where the original trains a language model "
        "to answer; defaults, nothing chosen on wrong trajectories"
    )
    data = (
        "calculator world: programs of 2 to 5 operations, wrong tool or argument at a random step; "
        "250 pairs of a right and a wrong trajectory to fit, 150 to test, 200 right ones to "
        "calibrate and 200 fresh; numbers are tokens; GPT-2 of 3 layers of 64, mean over a step"
    )
    claims = (
        Claim(
            "false alarms",
            f"On fresh faultless trajectories a verifier that is calibrated on others at "
            f"{ALARM:.0%} raises less than {MOST_ALARMS:.0%} alarms.",
            f"{MOST_ALARMS:.2f} less the share of alarms",
        ),
        Claim(
            "direct over completed",
            "A wrong step is easier to detect where what follows was not re-run.",
            "difference of AUROC",
        ),
        Claim(
            "detection over localisation",
            "To detect is easier than to localise (completed).",
            "macro-F1 of the verdict less the share of right verdicts with the right step",
        ),
        Claim(
            "step over trajectory: where",
            "Supervision at the step localises better than at the trajectory (completed).",
            "difference of the share of right steps",
        ),
        Claim(
            "step over trajectory: whether",
            "Supervision at the step detects better than at the trajectory (completed).",
            "difference of AUROC",
        ),
    )
    null = Claim(
        "null", "Fresh faultless against other faultless trajectories.", "AUROC", above=0.5
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train, read, fit, score."""
        scale = 5 if tiny else 1
        tick("training")
        model = _trained(seed, 10 if tiny else STEPS)
        tick("reading")
        fit, test = (_pairs(n // scale, 2 * seed + i) for i, n in enumerate((FIT, TEST)))
        held, fresh = (_clean(n // scale, f"{seed} {n} {i}") for i, n in enumerate((HELD, FRESH)))
        read_fit = {how: _steps(model, made) for how, made in fit.items()}
        read_test = {how: _steps(model, made) for how, made in test.items()}
        clean = _steps(model, held), _steps(model, fresh)
        tick("scoring")
        figures = {
            **_verified("direct", read_fit["direct"], read_test["direct"], clean),
            **_verified("completed", read_fit["completed"], read_test["completed"], clean),
            **_verified("vague", read_fit["completed"].vague(), read_test["completed"], clean),
            **_distances(read_fit["completed"], read_test["completed"], clean),
            **_by_words(model, test),
            **_by_numbers(read_fit["completed"], read_test["completed"]),
        }
        return {
            "false alarms": MOST_ALARMS - figures["completed | false alarms"],
            "direct over completed": figures["direct | detection"]
            - figures["completed | detection"],
            "detection over localisation": figures["completed | macro-F1"]
            - figures["completed | joint match"],
            "step over trajectory: where": figures["completed | localisation"]
            - figures["vague | localisation"],
            "step over trajectory: whether": figures["completed | detection"]
            - figures["vague | detection"],
            **figures,
        }


def _trained(seed: int, steps: int) -> Model:
    """Return a model that has read faultless trajectories."""
    model = language_model(WORDS, CONTEXT, seed)
    source = Random(seed)

    def texts(n: int) -> list[str]:
        return [_text(solve(world, world.draw(source), "")) for _ in range(n)]

    world = Calculator(SHORTEST, LONGEST)
    train(model, texts, steps, after=TASK_ENDS)
    return model


def _text(trajectory: Trajectory) -> str:
    steps = (f"{step.action} {step.observation}" for step in trajectory.steps)
    return "\n".join([trajectory.task, *steps])


def _clean(n: int, seed: str) -> list[Trajectory]:
    world, source = Calculator(SHORTEST, LONGEST), Random(seed)
    return [solve(world, world.draw(source), f"{seed} {i}") for i in range(n)]


def _pairs(n: int, seed: int) -> dict[str, list[Trajectory]]:
    """Return pairs of right and wrong trajectories, completed and with the rest as it was."""
    made = build_trajectories(
        n, worlds=[Calculator(SHORTEST, LONGEST)], kinds=["I"], seed=seed
    ).trajectories
    direct: list[Trajectory] = []
    for clean, wrong in zip(made[::2], made[1::2], strict=True):
        place = wrong.first_error
        steps = (*clean.steps[:place], wrong.steps[place], *clean.steps[place + 1 :])
        direct += [clean, replace(wrong, steps=steps)]
    return {"direct": direct, "completed": list(made)}


def _steps(model: Model, trajectories: Sequence[Trajectory]) -> Steps:
    """Return the mean state of each step at the last layer."""
    rows: list[dict[str, Any]] = [
        {
            "id": str(i),
            "instruction": t.task,
            "steps": [{"text": f"{s.action} {s.observation}"} for s in t.steps],
            "label": t.label,
            "first_error": t.first_error,
        }
        for i, t in enumerate(trajectories)
    ]
    x: list[Tensor] = []
    places: list[tuple[int, int]] = []
    for batch in read(model, rows, sites=SITE, reducer="steps"):
        ((key, row),) = batch.rows.items()
        x.append(row)
        names = (int(batch.ids[int(i)]) for i in batch.example[key].tolist())
        places += zip(names, batch.position[key].tolist(), strict=True)
    order = sorted(range(len(places)), key=places.__getitem__)
    where = torch.tensor(places)[order]
    first = torch.tensor([t.first_error for t in trajectories])
    return Steps(torch.cat(x)[order].double(), where[:, 1], where[:, 0], first[where[:, 0]])


def _verified(name: str, fit: Steps, test: Steps, clean: tuple[Steps, Steps]) -> dict[str, float]:
    """Return what a verifier fitted on some trajectories says of others."""
    names = [str(i) for i in fit.trajectory.tolist()]
    scorer = TrajectoryVerifier().fit(
        fit.x, first_error=fit.first_error, position=fit.position, ids=names, group=names
    )
    found = scorer.localise(test.x, test.position, test.trajectory)
    held, fresh = (scorer.localise(c.x, c.position, c.trajectory).wrong for c in clean)
    said = found.answers()[test.trajectory] == test.position
    first = test.is_first
    figures = {
        "false alarms": _alarms(held, fresh),
        **_areas(found.wrong, found.first, test),
        "macro-F1": float(step_f1(found.wrong > 0.5, test.wrong, macro=True, resamples=0).value),
        "joint match": float(joint_match(said, first, test.trajectory, resamples=0).value),
    }
    null = {"null": area(held, fresh)} if name == "completed" else {}
    return null | {f"{name} | {what}": value for what, value in figures.items()}


def _areas(whole: Tensor, by_step: Tensor, test: Steps) -> dict[str, float]:
    """Return how well trajectories and steps are told."""
    place = localisation(by_step, test.is_first, test.trajectory, resamples=0)
    return {
        "detection": area(whole[~test.wrong], whole[test.wrong]),
        "localisation": float(place.value),
    }


def _alarms(held: Tensor, fresh: Tensor) -> float:
    """Return the share of fresh trajectories whose conformal p-value among others is small."""
    above = (held[None] >= fresh[:, None]).double().sum(1)
    return float(((1 + above) / (1 + len(held)) <= ALARM).double().mean())


def _distances(fit: Steps, test: Steps, clean: tuple[Steps, Steps]) -> dict[str, float]:
    """Return what the largest distance of a step to those of right trajectories tells."""
    usual = fit.x[fit.first_error < 0]
    scorer = Mahalanobis().fit(usual)
    held, fresh = (c.highest(scorer.score(c.x)) for c in clean)
    score = scorer.score(test.x)
    figures = {"false alarms": _alarms(held, fresh), **_areas(test.highest(score), score, test)}
    return {f"Mahalanobis | {what}": value for what, value in figures.items()}


def _by_words(model: Model, test: dict[str, list[Trajectory]]) -> dict[str, float]:
    """Return what the least likely token of the steps tells."""
    found: dict[str, float] = {}
    start = model.processor.convert_tokens_to_ids(TASK_ENDS)
    for how, made in test.items():
        ids = tokens_of(model, [_text(t) for t in made])
        with torch.no_grad():
            chances = model.module(ids).logits[:, :-1].log_softmax(2)
        surprise = -chances.gather(2, ids[:, 1:, None])[..., 0]
        asked = ((ids == start).cumsum(1) > 0)[:, :-1] & (ids[:, 1:] > 0)
        most = torch.where(asked, surprise, 0.0).amax(1)
        wrong = torch.tensor([t.label == 1 for t in made])
        found[f"largest surprise, {how} | detection"] = area(most[~wrong], most[wrong])
    return found


def _by_numbers(fit: Steps, test: Steps) -> dict[str, float]:
    """Return what the number of steps, and the most frequent wrong step, tell."""
    length = test.highest(test.position.double())
    prior = Counter(fit.position[fit.is_first].tolist())
    chance = torch.tensor([float(prior[i]) for i in test.position.tolist()])
    return {
        "length | detection": area(length[~test.wrong], length[test.wrong]),
        "step prior | localisation": _areas(length, chance, test)["localisation"],
    }
