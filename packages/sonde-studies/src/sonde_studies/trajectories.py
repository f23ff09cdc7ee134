"""Wrong steps that a verifier of hidden states finds, and the training it needs."""

from typing import final

from sonde_studies._read_trajectories import STEPS, reader_of
from sonde_studies._trajectory_kinds import other_kinds, wrong_actions
from sonde_studies.study import Claim, Figures, Study, Tick

GAPS = {
    "direct over completed": ("direct | detection", "completed | detection"),
    "verifier over surprise: whether": (
        "completed | detection",
        "largest surprise, completed | detection",
    ),
    "verifier over surprise: where": (
        "completed | localisation",
        "largest surprise, completed | localisation",
    ),
    "verifier over step prior": ("completed | localisation", "step prior | localisation"),
    "step over trajectory: where": ("completed | localisation", "vague | localisation"),
    "step over trajectory: whether": ("completed | detection", "vague | detection"),
    "repeats over length": ("repeats: detection", "repeats: length | detection"),
    "extras over length": ("extras: detection", "extras: length | detection"),
    "extras over wrong": ("extras: localisation", "completed | localisation"),
}
"""Of each claim about a difference the two figures: the first less the second."""


@final
class TrajectoriesStudy(Study):
    """A verifier on states of a small transformer that was trained on correct trajectories.

    Arms that begin with "why" change one thing of the verifier on completed ones: what it reads
    (the last token of a step, all layers, the surprise of the step beside the states) or how many
    pairs teach it.

    ``direct`` puts the wrong step in and leaves all others as they were; ``completed`` goes on from
    it. Both share task, wrong step and clean twin. These have a wrong action (kind I); ``repeats``
    (II) do a step again, ``extras`` (III) go on after the end, each with a verifier of its own.
    """

    name = "trajectories"
    title = "which wrong steps does a verifier of hidden states find?"
    paper = "liu2026trajad"
    fidelity = (
        "reconstructed: hidden states of a small model where the original trains a language model "
        "to answer; defaults, nothing chosen on wrong trajectories"
    )
    data = (
        "calculator world: programs of 2 to 5 operations, wrong tool or argument at a random step, "
        "a repeated step, or actions after the end (programs of 2 and 3); for each kind "
        "250 pairs of a right and a wrong trajectory to fit, 150 to test, 200 right ones to "
        "calibrate and 200 fresh; numbers are tokens; GPT-2 of 3 layers of 64, mean over a step"
    )
    claims = (
        Claim(
            "direct over completed",
            "A wrong step is easier to detect where what follows was not re-run.",
            "difference of AUROC",
            arms=("direct", "completed"),
        ),
        Claim(
            "verifier over surprise: whether",
            "The verifier, fitted to labelled rows, detects better than the largest surprise of "
            "a token (completed).",
            "difference of AUROC",
            arms=("completed", "largest surprise"),
        ),
        Claim(
            "verifier over surprise: where",
            "The verifier, fitted to labelled rows, localises better than the most surprising "
            "step (completed).",
            "difference of the share of right steps",
            arms=("completed", "largest surprise"),
        ),
        Claim(
            "verifier over step prior",
            "The verifier localises better than the number of the step alone (completed).",
            "difference of the share of right steps",
            arms=("completed", "step prior"),
        ),
        Claim(
            "step over trajectory: where",
            "Supervision at the step localises better than at the trajectory (completed).",
            "difference of the share of right steps",
            arms=("completed", "vague"),
        ),
        Claim(
            "step over trajectory: whether",
            "Supervision at the step detects better than at the trajectory (completed).",
            "difference of AUROC",
            arms=("completed", "vague"),
        ),
        Claim(
            "repeats over length",
            "The verifier, fitted to labelled rows, detects repeated steps better than the "
            "number of steps does.",
            "difference of AUROC",
            arms=("repeats", "repeats: length"),
        ),
        Claim(
            "extras over length",
            "So it does actions after the end, fitted to labelled rows.",
            "difference of AUROC",
            arms=("extras", "extras: length"),
        ),
        Claim(
            "extras over wrong",
            "Actions after the end are easier to localise than wrong actions.",
            "difference of the share of right steps",
            arms=("extras", "completed"),
        ),
    )
    null = Claim(
        "null", "Fresh faultless against other faultless trajectories.", "AUROC", above=0.5
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train, read, fit, score."""
        parts = 5 if tiny else 1
        tick("training")
        model = reader_of(seed, 10 if tiny else STEPS)
        tick("wrong actions")
        figures = wrong_actions(model, seed, parts)
        tick("other kinds")
        figures |= other_kinds(model, seed, parts)
        gaps = {key: figures[own] - figures[other] for key, (own, other) in GAPS.items()}
        return gaps | figures
