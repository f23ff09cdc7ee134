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

    Arms that begin with "why" change one thing of the verifier on completed ones: what it reads
    (the last token of a step, all layers, the surprise of the step beside the states) or how many
    pairs teach it.

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
            "verifier over surprise: whether",
            "The verifier detects better than the largest surprise of a token (completed).",
            "difference of AUROC",
        ),
        Claim(
            "verifier over surprise: where",
            "The verifier localises better than the most surprising step (completed).",
            "difference of the share of right steps",
        ),
        Claim(
            "verifier over step prior",
            "The verifier localises better than the number of the step alone (completed).",
            "difference of the share of right steps",
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
        surprise = {how: _surprises(model, made) for how, made in test.items()}
        tick("scoring")
        figures = {
            **_verified("direct", read_fit["direct"], read_test["direct"], clean),
            **_verified("completed", read_fit["completed"], read_test["completed"], clean),
            **_verified("vague", read_fit["completed"].vague(), read_test["completed"], clean),
            **_distances(read_fit["completed"], read_test["completed"], clean),
            **{
                f"largest surprise, {how} | {what}": value
                for how, score in surprise.items()
                for what, value in _areas(
                    read_test[how].highest(score), score, read_test[how]
                ).items()
            },
            **_by_numbers(read_fit["completed"], read_test["completed"]),
            **_why(model, fit["completed"], test["completed"], 2 * seed + 1_000_000),
        }
        return {
            "false alarms": MOST_ALARMS - figures["completed | false alarms"],
            "direct over completed": figures["direct | detection"]
            - figures["completed | detection"],
            "verifier over surprise: whether": figures["completed | detection"]
            - figures["largest surprise, completed | detection"],
            "verifier over surprise: where": figures["completed | localisation"]
            - figures["largest surprise, completed | localisation"],
            "verifier over step prior": figures["completed | localisation"]
            - figures["step prior | localisation"],
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
    return "\n".join([trajectory.task, *_step_texts(trajectory)])


def _step_texts(trajectory: Trajectory) -> list[str]:
    return [f"{step.action} {step.observation}" for step in trajectory.steps]


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


def _steps(
    model: Model, trajectories: Sequence[Trajectory], sites: Any = SITE, reducer: str = "steps"
) -> Steps:
    """Return the state of each step, by default the mean at the last layer; sites side by side."""
    rows: list[dict[str, Any]] = [
        {
            "id": str(i),
            "instruction": t.task,
            "steps": [{"text": text} for text in _step_texts(t)],
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


def _surprises(model: Model, trajectories: Sequence[Trajectory]) -> Float[Tensor, "step"]:
    """Return minus the log-probability of the least likely token of each step."""
    found: list[Tensor] = []
    for t in trajectories:
        lengths = [len(ids) for ids in model.processor([t.task, *_step_texts(t)])["input_ids"]]
        ids = tokens_of(model, [_text(t)])
        with torch.no_grad():
            chances = model.module(ids).logits[0, :-1].log_softmax(1)
        surprise = -chances.gather(1, ids[0, 1:, None])[:, 0]
        found += [part.max() for part in surprise.split([lengths[0] - 1, *lengths[1:]])[1:]]
    return torch.stack(found).double()


def _fitted(fit: Steps) -> Any:
    names = [str(i) for i in fit.trajectory.tolist()]
    return TrajectoryVerifier().fit(
        fit.x, first_error=fit.first_error, position=fit.position, ids=names, group=names
    )


def _verified(name: str, fit: Steps, test: Steps, clean: tuple[Steps, Steps]) -> dict[str, float]:
    """Return what a verifier fitted on some trajectories says of others."""
    scorer = _fitted(fit)
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


def _why(
    model: Model, fit: list[Trajectory], test: list[Trajectory], seed: int
) -> dict[str, float]:
    """Return what verifiers tell that read something else, or learn from more pairs."""
    both = {"fit": fit, "test": test}
    plain = {part: _steps(model, made) for part, made in both.items()}
    last, every = (
        {part: _steps(model, made, sites, reducer) for part, made in both.items()}
        for sites, reducer in ((SITE, "step_ends"), (EVERY, "steps"))
    )
    extra = {part: _surprises(model, made)[:, None] for part, made in both.items()}
    joined = {k: replace(s, x=torch.cat([s.x, extra[k]], dim=1)) for k, s in plain.items()}
    more = _pairs((MORE - 1) * len(fit) // 2, seed)["completed"]
    arms = {
        "why: last token": last,
        "why: all layers": every,
        "why: surprise beside": joined,
        "why: surprise alone": {k: replace(s, x=extra[k]) for k, s in plain.items()},
        f"why: {MORE} x the pairs": plain | {"fit": _steps(model, [*fit, *more])},
    }
    figures: dict[str, float] = {}
    for name, steps in arms.items():
        of = steps["test"]
        found = _fitted(steps["fit"]).localise(of.x, of.position, of.trajectory)
        told = _areas(found.wrong, found.first, of)
        figures |= {f"{name} | {what}": value for what, value in told.items()}
    return figures


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


def _by_numbers(fit: Steps, test: Steps) -> dict[str, float]:
    """Return what the number of steps, and the most frequent wrong step, tell."""
    length = test.highest(test.position.double())
    prior = Counter(fit.position[fit.is_first].tolist())
    chance = torch.tensor([float(prior[i]) for i in test.position.tolist()])
    return {
        "length | detection": area(length[~test.wrong], length[test.wrong]),
        "step prior | localisation": _areas(length, chance, test)["localisation"],
    }
