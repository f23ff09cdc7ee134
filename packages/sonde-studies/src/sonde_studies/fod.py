"""Test whether a position term finds normal-looking parts at wrong positions."""

from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from sonde.detect import FOD, PaDiM, PatchCore
from sonde_studies._keypad import PLACES, Keypads, keypads
from sonde_studies._patches import image_area, patch_area, patches_of
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick

SITE = "keys:out"
NET = {"width": 32, "heads": 4, "layers": 2, "batch": 8, "rate": 5e-3}
PASSES, FIT, TEST, COOLED = 20, 100, 80, 10.0
Scores = dict[str, dict[str, Tensor]]


@final
class FODStudy(Study):
    """Reconstruction, displacement and their products, on boards with a changed part.

    The relative weight is at most the board's largest share of the softmax, and about a fifth of
    usual keys reach it (``share of keys at full weight``): a displaced one cannot stand out beyond
    them. With divergences divided by ten it does, more than in the absolute score. The relative
    score is not blind to a board of displaced keys: their divergences differ more, and so do the
    shares. As a factor the error dilutes what the displacement finds; a Gaussian at each place
    (PaDiM) finds more than either, and what does not know places (PatchCore) finds nothing.
    """

    name = "fod"
    title = "does attention to what is usual at each place find parts that were displaced?"
    paper = "yao2023fod"
    fidelity = (
        "official score; the net is ours where the published one cancels its input (both branches "
        "take part), smaller, and trained for fixed passes; the original chose the epoch on test "
        "images"
    )
    data = (
        "boards of 4 x 4 keys of scikit-learn's digits, one look for each place; a net that sees "
        "one key at a time and was trained to tell the looks apart; one key of another place, or "
        "of a digit never seen; other digits in test than in fit"
    )
    claims = (
        Claim(
            "displacement over error",
            "A displaced key: the divergence of the attention to the references beats the error "
            "of reconstruction.",
            "difference of AUROC of keys",
            arms=("displacement", "error"),
        ),
        Claim(
            "score over error",
            "A displaced key: the paper's score, relative within the image, beats the error.",
            "difference of AUROC of keys",
            arms=("score, relative", "error"),
        ),
        Claim(
            "absolute over relative",
            "A displaced key: error times divergence beats the relative score.",
            "difference of AUROC of keys",
            arms=("score, absolute", "score, relative"),
        ),
        Claim(
            "everywhere: absolute over relative",
            "Every key displaced: the absolute score beats the relative one, which compares keys "
            "of one board.",
            "difference of AUROC of boards",
            arms=("score, absolute", "score, relative"),
        ),
        Claim(
            "odd: score over error",
            "A key never seen: the paper's score beats the error as well.",
            "difference of AUROC of keys",
            arms=("score, relative", "error"),
        ),
    )
    null = Claim(
        "null", "Fresh usual boards against fresh usual boards.", "AUROC of boards", above=0.5
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train, fit, score."""
        tick("training the net")
        boards = keypads(seed, 24 if tiny else FIT, 20 if tiny else TEST)
        tick("fitting")
        scores, share = _scores(boards, seed, 2 if tiny else PASSES)
        found: dict[str, float] = {}
        for name, parts in scores.items():
            usual = parts["usual"]
            for part in ("displaced", "odd"):
                found[f"{name} | {part} key"] = patch_area(parts[part], boards.planted)
                found[f"{name} | {part} board"] = image_area(usual, parts[part])
            found[f"{name} | shuffled board"] = image_area(usual, parts["shuffled"])
        error, place, relative, absolute = (
            found[f"{name} | displaced key"]
            for name in ("error", "displacement", "score, relative", "score, absolute")
        )
        everywhere = [found[f"score, {how} | shuffled board"] for how in ("absolute", "relative")]
        return {
            "displacement over error": place - error,
            "score over error": relative - error,
            "absolute over relative": absolute - relative,
            "everywhere: absolute over relative": everywhere[0] - everywhere[1],
            "odd: score over error": found["score, relative | odd key"] - found["error | odd key"],
            "null": image_area(*(scores["score, relative"][p] for p in ("usual", "clean"))),
            "share of keys at full weight": share,
            **found,
        }


def _scores(boards: Keypads, seed: int, passes: int) -> tuple[Scores, float]:
    """Return the scores of all arms and parts, and the number of heavily used normal keys."""
    x, place = patches_of(boards.model, boards.fit, SITE)
    ids = torch.arange(len(boards.fit)).repeat_interleave(PLACES)
    fod = FOD(**NET, passes=passes, seed=seed).fit(x, ids=ids, position=place)
    places, anywhere = PaDiM().fit(x, position=place), PatchCore(window=1).fit(x)
    found: Scores = {}
    full = 0.0
    for part in ("usual", "clean", "displaced", "odd", "shuffled"):
        new, place = patches_of(boards.model, getattr(boards, part), SITE)
        who = torch.arange(len(new) // PLACES).repeat_interleave(PLACES)
        columns = new, torch.stack([who, who], 1), torch.zeros_like(who), place
        error, gap = (t.reshape(-1, PLACES) for t in fod.terms(*columns))
        mine = {
            "error": error,
            "displacement": gap,
            "score, relative": fod.score(*columns),
            "score, absolute": replace(fod, relative=False).score(*columns),
            "relative, divergences / 10": error * _weight(gap / COOLED),
            "PaDiM": places.score(new, place),
            "PatchCore": anywhere.score(new),
        }
        for name, values in mine.items():
            note_for(name, rows=len(x))
            found.setdefault(name, {})[part] = values.reshape(-1, PLACES)
        if part == "usual":
            weight = _weight(gap)
            full = float((weight > 0.9 * weight.amax(1, keepdim=True)).double().mean())
    return found, full


def _weight(gap: Tensor) -> Tensor:
    nearness = torch.softmax(-gap, dim=1)
    return nearness.amax(1, keepdim=True) - nearness
