"""Fine-tuning on a new domain: necessary parameters, and the cost on the old domain."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sonde import InputError, Model
from sonde.core import SiteError, marks
from sonde.data import open_inputs
from sonde.measure import cka
from sonde.report import Answer
from sonde_studies.parts.choice import gain_of_best
from sonde_studies.parts.figures import WHOLE_ACCURACY, check_order, gained, is_sure, melted, names
from sonde_studies.parts.noted import tuned_part
from sonde_studies.parts.once import copies_once
from sonde_studies.parts.states import graded, item_parts

QUESTION = "Which parameters should move on a new domain?"
LEAST, TEST = 40, 0.5
RULES: dict[str, Any] = {"norms": "norms", "biases": "bias", "the last block": "top", "all": "all"}
WORDED = {"new domain": "new", "old domain": "old"}


@copies_once(one_of_group=("source",))
def tune_norms(
    model: Model,
    target: Any,
    source: Any,
    *,
    epochs: int = 10,
    rate: float = 1e-3,
    batch_size: int = 32,
    site: str = "auto",
    label_column: str | None = None,
    classes: Sequence[str] | None = None,
    group_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Tune a copy of a classifier on a new domain by norms, biases, the last block, and all.

    Half of the new domain trains, the other half judges; the old domain only judges. For each
    choice: accuracy on both, the share of parameters that move, and how far the states of the old
    domain move. The smallest choice that is as good as the best is recommended.

    Example: sonde recipe tune-norms MODEL TARGET SOURCE -o tuning.html

    Parameters
    ----------
    model : Model
        A classifier that was trained on the old domain.
    target : str, path or iterable
        Labelled examples of the new domain.
    source : str, path or iterable
        Labelled examples of the old domain that the model was not trained on.
    epochs : int, default=10
        Passes over the half that trains.
    rate : float, default=0.001
        Rate of Adam.
    batch_size : int, default=32
        Examples of a step.
    site : str, default="auto"
        Where states are compared; "auto" is after every block.
    label_column : str, optional
        Column of the class, where its name does not say so.
    classes : sequence of str, optional
        Names of the classes in the order of the outputs, where labels are names.
    group_column : str, optional
        Column of the person or document of a row, if its name is not "group". Rows of one group,
        and near copies, are never on both sides of a split.
    limit : int, optional
        Read only the first examples of each domain.
    seed : int, default=0
        Draws the halves and the order of the training.
    """
    options: dict[str, Any] = {"label_column": label_column, "classes": classes, "limit": limit}
    options |= {"group_column": group_column}
    inputs = open_inputs(model, target, batch_size=batch_size, **options)
    draw = np.random.default_rng(seed)
    ours, held, groups = item_parts(inputs, target, TEST, draw, group_column, limit)

    def judged(other: Model) -> tuple[Any, Any, Any]:
        how = {"sites": site, "check": False} | options
        (new, right), (old, before) = (
            graded("tune_norms", other, d, LEAST, progress, **how) for d in (target, source)
        )
        return right[np.isin(new.item.numpy(), held)], before, old.rows

    found, share = {"before": judged(model)}, {"before": 0.0}
    check_order("tune_norms", float(found["before"][1].mean()), inputs.label_names)
    how: dict[str, Any] = {"rate": rate, "epochs": epochs, "seed": seed, "progress": progress}
    for name, rule in RULES.items():
        try:
            copy, share[name] = tuned_part(name, model, ours, rule, **how)
        except (InputError, SiteError):
            if rule == "all":
                raise
            continue  # a model without norms, biases or blocks
        found[name] = judged(copy)
    table, (first, _, states) = list[dict[str, Any]](), found["before"]
    for name, (new, old, other) in found.items():
        row = {"moved": name, "share": share[name], "new domain": float(new.mean())}
        moved = {} if name == "before" else states
        alike = {f"CKA {k}": float(cka(x, other[k]).value) for k, x in moved.items()}
        table.append(row | {"old domain": float(old.mean())} | alike)
    told = {row["moved"]: [f"{row[domain]:.3f}" for domain in WORDED] for row in table}
    best = max([*found][1:], key=lambda name: float(found[name][0].mean()))
    ties = [n for n in [*found][1:] if not is_sure(found[best][0] * 1.0 - found[n][0])]
    chosen = min(ties, key=lambda name: share[name])
    tuned_right = {name: right for name, (right, *_) in found.items() if name != "before"}
    gain, shared = gain_of_best(tuned_right, {"before": first}, seed)
    is_better = is_sure(gain, shared)
    was, now = told["before"], told[chosen]
    rest = "" if chosen == "all" else f"; tuning all to {' and '.join(told['all'])}"
    title = "Accuracy on both domains by what was tuned"
    points = melted(table, "moved", "accuracy", "domain", WORDED)
    return Answer(
        question=QUESTION,
        verdict=f"tune {chosen}" if is_better else "no gain",
        level="clear" if is_better else "warning",
        sentence=f"Tuning {chosen} ({share[chosen]:.1%} of the parameters) takes accuracy on the "
        f"new domain from {was[0]} to {now[0]} and on the old one from {was[1]} to {now[1]}{rest}.",
        **gained(gain, shared),
        rows=tuple(table),
        drawn=marks(title, points, WHOLE_ACCURACY, names("moved"), by="domain", size=90),
        facts={"trained on": str(len(ours)), "epochs": str(epochs), "rate": f"{rate:g}"} | groups,
        advice=(
            "CKA is that of the old domain's states before and after: 1 is unmoved. Choices tie "
            "where the difference is below two standard errors; of these the smallest is taken.",
        ),
    )
