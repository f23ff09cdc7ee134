"""Verifiers of each kind of error: wrong actions, repeated steps, and actions after the end."""

from sonde import Model
from sonde_studies._read_trajectories import faultless, pairs_of, pairs_of_kind, steps_of
from sonde_studies._trajectory_arms import (
    areas,
    arms_of_why,
    by_numbers,
    by_surprise,
    distances,
    fitted,
    verified,
)
from sonde_studies.arms import note_for
from sonde_studies.worlds.perturb import Kind

FIT, HELD, FRESH, TEST = 250, 200, 200, 150
KINDS: dict[str, Kind] = {"repeats": "II", "extras": "III"}


def wrong_actions(model: Model, seed: int, parts: int = 1) -> dict[str, float]:
    """Return the results of all arms on trajectories with a wrong action.

    Parameters
    ----------
    model : Model
        Reads the trajectories.
    seed : int
    parts : int, default=1
        The trajectories are divided into this many parts, and one of them is made.
    """
    fit, test = (pairs_of(n // parts, 2 * seed + i) for i, n in enumerate((FIT, TEST)))
    held, fresh = (faultless(n // parts, f"{seed} {n} {i}") for i, n in enumerate((HELD, FRESH)))
    read_fit = {how: steps_of(model, made) for how, made in fit.items()}
    read_test = {how: steps_of(model, made) for how, made in test.items()}
    clean = steps_of(model, held), steps_of(model, fresh)
    for name in ("direct", "completed", "vague", "step prior"):
        note_for(name, rows=len(fit["completed"]))
    note_for("largest surprise", rows=0)
    return {
        **verified("direct", read_fit["direct"], read_test["direct"], clean),
        **verified("completed", read_fit["completed"], read_test["completed"], clean),
        **verified("vague", read_fit["completed"].vague(), read_test["completed"], clean),
        **distances(read_fit["completed"], read_test["completed"], clean),
        **by_surprise("direct", model, test["direct"], read_test["direct"]),
        **by_surprise("completed", model, test["completed"], read_test["completed"]),
        **by_numbers(read_fit["completed"], read_test["completed"]),
        **arms_of_why(model, fit["completed"], test["completed"], 2 * seed + 1_000_000),
    }


def other_kinds(model: Model, seed: int, parts: int = 1) -> dict[str, float]:
    """Return the results of a verifier, the step count and the commonest step, for each kind."""
    figures: dict[str, float] = {}
    for name, kind in KINDS.items():
        fit, test = (
            steps_of(model, pairs_of_kind(kind, n // parts, 2 * seed + i))
            for i, n in enumerate((FIT, TEST))
        )
        note_for(name, rows=len(fit.wrong))
        note_for(f"{name}: length", rows=0)
        found = fitted(fit).localise(test.x, test.position, test.trajectory)
        told = areas(found.wrong, found.first, test) | by_numbers(fit, test)
        figures |= {f"{name}: {what}": value for what, value in told.items()}
    return figures
