"""What a fine-tuning with losses at sites gained, as text for a terminal."""

from typing import Any

from sonde.report._format import number, plural, share, shown


def train_verdict(found: dict[str, Any]) -> str:
    """Return in two sentences whether the losses fell, and whether they helped the task.

    Parameters
    ----------
    found : dict
        JSON of a fine-tuning, ``sonde-train/1``.
    """
    return f"{_worked(found)} {_helped(found)}".strip()


def train_to_text(found: dict[str, Any]) -> str:
    """Return the verdict and a line for each kind of figure."""
    recipe, lines = found["recipe"], [train_verdict(found)]
    lines.append(
        f"task     {', '.join(f'{name} {task_words(found, name)}' for name in arms(found))}"
    )
    for one in found["terms"]:
        other = "" if one["without"] is None else f", {number(one['without'])} without it"
        lines.append(
            f"loss     {shown(one['term'], 60)}: {number(one['before'])} before, "
            f"{number(one['with'])} trained with it{other}"
        )
    if found["conflict"]:
        told = ", ".join(number(x, 2) for x in found["conflict"])
        lines.append(f"agree    cosine of the gradients of task and losses, by epoch: {told}")
    for name, sites in found["sites"].items():
        worst = min(
            sites, key=lambda one: one["cka"] if one["cka"] is not None else 2, default=None
        )
        if worst is not None:
            lines.append(
                f"inside   {name} the losses: states moved most at {shown(worst['site'], 60)}, CKA "
                f"with those before {number(worst['cka'])}"
            )
    lines.append(
        f"trained  {plural(found['trained_on'], 'example')}, {plural(recipe['epochs'], 'epoch')}, "
        f"rate {recipe['rate']:g}, weight {recipe['weight']:g}, {recipe['scope']} parameters, "
        f"{plural(len(found['seeds']), 'seed')}; figures on {found['held']:,} other examples"
    )
    return "\n".join(lines)


def arms(found: dict[str, Any]) -> list[str]:
    """Return the names of what is compared: before, without and with."""
    return ["before", *(name for name in ("without", "with") if name in found["seeds"][0])]


def figures_of(found: dict[str, Any], arm: str) -> dict[str, Any]:
    """Return accuracy and loss of one arm, of the first seed."""
    return found["before"] if arm == "before" else found["seeds"][0][arm]


def task_words(found: dict[str, Any], arm: str) -> str:
    """Return accuracy and loss of one arm."""
    told = figures_of(found, arm)
    return f"{share(told['accuracy']['value'])} right ({number(told['loss']['value'])} nats)"


def _worked(found: dict[str, Any]) -> str:
    parts = []
    for one in found["terms"]:
        name = shown(one["term"], 60)
        if one["without"] is None:
            fell = one["with"] < one["before"]
            parts.append(f"{name} {'fell' if fell else 'did not fall'}: {number(one['before'])} to "
                         f"{number(one['with'])}")  # fmt: skip
        else:
            fell = one["with"] < one["without"]
            verb = "worked" if fell else "did not work"
            parts.append(f"{name} {verb}: {number(one['with'])} with it, {number(one['without'])} "
                         "without")  # fmt: skip
    return f"{'; '.join(parts)}." if parts else "No loss at a site: the task alone."


def _helped(found: dict[str, Any]) -> str:
    gain, against = found["gain"]["accuracy"], "without" if "without" in arms(found) else "before"
    range_words = f"{_points(gain['low'])} to {_points(gain['high'])}"
    told = f"{share(figures_of(found, 'with')['accuracy']['value'])} right with, "
    told += f"{share(figures_of(found, against)['accuracy']['value'])} {against}"
    if gain["low"] > 0:
        return f"The task gained {_points(gain['value'])} points ({range_words}): {told}."
    if gain["high"] < 0:
        return f"The task lost {_points(-gain['value'])} points ({range_words}): {told}."
    return f"The task did not change beyond chance ({range_words} points): {told}."


def _points(x: float) -> str:
    return f"{100 * x:.1f}"
