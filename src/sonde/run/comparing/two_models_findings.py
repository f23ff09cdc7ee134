"""Findings of a comparison of two models, as sentences with their own codes."""

from dataclasses import dataclass
from typing import Final, Literal

from sonde.core.errors import InputError, near
from sonde.core.wording import plural
from sonde.run.comparing.model_difference import ModelDifference
from sonde.run.comparing.two_models import SiteMatch, TwoModels

STILL: Final = 1e-3
"""Smallest change, in standard deviations, that counts as a change: rounding causes less."""
LEAST_UNITS: Final = 16
CHANCE: Final = 0.5
DEVIATION: Final = 12**-0.5
"""Mean and standard deviation of the rank of one unit among unrelated ones."""
SAME: Final = 0.95
"""Least share of units found again, or likeness after a rotation, for two layers to be one."""


MEANINGS: Final = {
    "CMP001": (
        "No layer changed",
        "The states of all compared layers are equal up to 0.001 standard deviations. If the "
        "answers differ, the change is after the last layer compared: in the head, or in what "
        "turns logits into answers. Add the head to --sites.",
    ),
    "CMP002": (
        "Layers that changed",
        "The states of these layers differ on the same inputs. The first of them is where the "
        "models part: look at its weights first. The size is the root mean square length of "
        "the changes of states, divided by the root mean square, over the changed states, of the "
        "standard deviation of the first model's states along each change; below 0.001 is "
        "rounding. CKA beside it is 1 if the geometry stayed the same. Whether the change "
        "costs accuracy stands in the first sentence of the comparison.",
    ),
    "CMP003": (
        "The same units in another order",
        "Each unit of these layers has a counterpart with another number (a correlation of at "
        "least 0.99). The layers compute the same, but directions, dictionaries and detectors "
        "fitted on one model do not fit the other. Fit them again.",
    ),
    "CMP004": (
        "Other units",
        "The units of these layers resemble the units of the same number no more than other "
        "units: the layers are rotated, or were initialised or trained anew. What was fitted on "
        "one model does not hold for the other. If you expected a fine-tuned copy, check which "
        "checkpoint was loaded.",
    ),
}
"""Title and explanation of each code."""


def explain_code(code: str) -> str:
    """Return what a code of a comparison means, and what to do.

    Raises
    ------
    InputError
        If there is no such code; with similar codes.
    """
    if code.upper() not in MEANINGS:
        raise InputError(
            f"compare: no finding of a comparison has the code {code!r}."
            f"{near(code.upper(), MEANINGS)} Codes: {', '.join(MEANINGS)}."
        )
    title, text = MEANINGS[code.upper()]
    return f"{code.upper()}  {title}\n\n{text}"


@dataclass(frozen=True)
class ModelFinding:
    """One finding of a comparison of two models.

    Parameters
    ----------
    code : str
    level : str
    sentence : str
    sites : tuple of str
        Where it was seen, in order of execution.
    """

    code: str
    level: Literal["note", "warning"]
    sentence: str
    sites: tuple[str, ...]


def model_findings(
    found: TwoModels, difference: ModelDifference | None = None
) -> tuple[ModelFinding, ...]:
    """Return the findings about layers with the same name and width in both models.

    Parameters
    ----------
    found : TwoModels
    difference : ModelDifference, optional
        What differs in the models themselves; it decides what a layer of other units is called.
    """
    named = [m for m in found.matches if m.movement is not None]
    if not named:
        return ()
    moved = [m for m in named if _size(m) > STILL]
    if not moved:
        return (_nothing(found, named),)
    replaced = [m for m in moved if _is_replaced(m)]
    renumbered = [m for m in replaced if m.found_same >= SAME]
    strange = [m for m in replaced if m not in renumbered]
    findings = (_place(named, moved), _renumbered(renumbered), _strange(strange, difference))
    return tuple(finding for finding in findings if finding is not None)


def _nothing(found: TwoModels, named: list[SiteMatch]) -> ModelFinding:
    sites, total = tuple(m.site for m in named), len(found.matches)
    which = (
        "any layer"
        if len(named) == total
        else f"the {len(named)} of {plural(total, 'layer')} compared"
    )
    return ModelFinding(
        "CMP001", "note", f"No layer changed: the states of {which} are equal.", sites
    )


def _place(named: list[SiteMatch], moved: list[SiteMatch]) -> ModelFinding:
    first, most = moved[0], max(moved, key=_size)
    before = named[: named.index(first)]
    start = f"No layer changed before {first.site}. " if before else ""
    text = (
        f"{start}{len(moved)} of {plural(len(named), 'layer')} changed; the largest change is at "
        f"{most.site}, {_size(most):.2g} standard deviations (CKA {most.cka:.2f})."
    )
    return ModelFinding("CMP002", "note", text, tuple(m.site for m in moved))


def _renumbered(matches: list[SiteMatch]) -> ModelFinding | None:
    if not matches:
        return None
    first = matches[0]
    text = (
        f"The units of {_places(matches)} are the same in another order: they are no more "
        "similar to the units of "
    )
    text += f"the same number than to other units, but {first.found_same:.0%} have a counterpart."
    return ModelFinding("CMP003", "note", text, tuple(m.site for m in matches))


def _strange(matches: list[SiteMatch], difference: ModelDifference | None) -> ModelFinding | None:
    if not matches:
        return None
    first = matches[0]
    text = (
        f"The units of {_places(matches)} are no more similar to the units of the same number "
        "than to "
    )
    text += f"other units, and {first.found_again:.0%} have a counterpart (CKA {first.cka:.2f}): "
    if difference is not None and not difference.weights:
        text = f"{text[:-2]}. {difference.sentence()}"
        return ModelFinding("CMP004", "warning", text, tuple(m.site for m in matches))
    turned = sum(map(_is_turned, matches))
    kinds = ("rotated", turned), ("re-initialised or trained anew", len(matches) - turned)
    here = [f"{kind} ({n})" if 0 < turned < len(matches) else kind for kind, n in kinds if n]
    text += f"{', '.join(here)}."
    text += f" {difference.sentence()}" if difference is not None else ""
    return ModelFinding("CMP004", "warning", text, tuple(m.site for m in matches))


def _places(matches: list[SiteMatch]) -> str:
    left = len(matches) - 1
    return matches[0].site + (f" and {left} later layer{'s' * (left > 1)}" if left else "")


def _size(match: SiteMatch) -> float:
    return 0.0 if match.movement is None else match.movement.size


def _is_turned(match: SiteMatch) -> bool:
    """Return whether the layers are equal up to a rotation or a permutation of units."""
    return match.distance < 1.0 - SAME


def _is_replaced(match: SiteMatch) -> bool:
    """Return whether units resemble the equally numbered units no more than chance predicts."""
    own = match.movement
    if own is None or own.n_units < LEAST_UNITS:
        return False
    return own.own_rank < CHANCE + max(0.1, 4 * DEVIATION / own.n_units**0.5)
