"""Unlearning: whether what was forgotten is gone, or only no longer said."""

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression  # pyright: ignore[reportMissingTypeStubs]
from sklearn.pipeline import make_pipeline  # pyright: ignore[reportUnknownVariableType]
from sklearn.preprocessing import StandardScaler  # pyright: ignore[reportMissingTypeStubs]

from sonde import InputError, Model, gather, read
from sonde.core import ChartAxis, marks
from sonde.data import open_inputs
from sonde.edit import forgotten
from sonde.report import Answer

QUESTION = "Is what the model was made to forget really gone?"
SHOTS = (1, 4, 16)
DRAWS, LEAST, MOST = 3, 20, 400
LEFT, OLD_LEFT = 0.05, 0.2
"""Accuracy beyond the control's from which traces count: of a new head, and of the old states'."""


def unlearning_audit(
    before: Model,
    after: Model,
    forget: Any,
    retain: Any,
    *,
    held: Any = None,
    gold: Model | None = None,
    of_class: str | None = None,
    site: str = "auto",
    label_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Audit a model that was made to forget a class: its answers, its states, what it cost.

    Two readers look at the states: a head that learned on the states before, and a new head that
    is shown a few examples of the class. If either gets more right after unlearning than on a
    model that never saw the class, the states still hold what the answers deny.

    Example: sonde recipe unlearning-audit BEFORE AFTER FORGET RETAIN --gold GOLD -o audit.html

    Parameters
    ----------
    before : Model
        The classifier as it was.
    after : Model
        The classifier that was made to forget.
    forget : str, path or iterable
        Labelled examples of the classes that were to be forgotten.
    retain : str, path or iterable
        Labelled examples of the other classes.
    held : str, path or iterable, optional
        Examples of the forgotten classes that no model saw, for an attack by low loss.
    gold : Model, optional
        A model trained without the forget examples; without it, the model with the weights of each
        layer shuffled stands in, a much weaker control.
    of_class : str, optional
        Name of one class: of the forget part it is taken, of the retain part all but it, so that
        both may name the same data.
    site : str, default="auto"
        Where the states are read; "auto" is after the last block.
    label_column : str, optional
        Column of the class, where its name does not say so.
    limit : int, optional
        Read only the first items of each part.
    seed : int, default=0
        Draws the examples that the new head sees.
    """
    options = {"label_column": label_column, "limit": limit}
    control = shuffled(before, seed) if gold is None else gold
    models = {"before": before, "after": after, "control": control}
    parts = {"forget": forget, "retain": retain} | ({} if held is None else {"held": held})
    inputs = {name: open_inputs(before, part, **options) for name, part in parts.items()}
    if of_class is not None:
        inputs = {n: p.of_class(of_class, without=n == "retain") for n, p in inputs.items()}
    said = forgotten(
        before, after.module, **inputs, retrained=None if gold is None else gold.module
    )
    states = {
        name: [
            _states(gather(read(m, parts[p], sites=site, **options), progress), of_class, p)
            for p in ("forget", "retain")
        ]
        for name, m in models.items()
    }
    _check(states["before"])
    relearned = {name: _relearned(both[0], both[1], seed) for name, both in states.items()}
    old = _read_by_old(states)
    trace = old["after"] - old["control"]
    own, lost = said.after["forget"].accuracy, said.before["retain"].accuracy
    lost -= said.after["retain"].accuracy
    is_left = trace > OLD_LEFT or np.mean(relearned["after"]) - np.mean(relearned["control"]) > LEFT
    silent = own < 0.5 * said.before["forget"].accuracy
    verdict = "not forgotten" if not silent else "only silent" if is_left else "gone"
    return Answer(
        question=QUESTION,
        verdict=verdict,
        level="clear" if verdict == "gone" else "warning" if silent and gold is None else "error",
        sentence=f"Accuracy on the forget examples went from {said.before['forget'].accuracy:.3f} "
        f"to {own:.3f}, and on the others fell by {lost:.3f}. A head that learned on the states "
        f"before reads {old['after']:.3f} of them from the states after, and {old['control']:.3f} "
        f"from those of {_name(gold)}; a new head that is shown {SHOTS[1]} reads "
        f"{relearned['after'][1]:.3f} and {relearned['control'][1]:.3f}.",
        value=trace,
        n=len(inputs["forget"]),
        direction="higher",
        rows=tuple(_rows(said, relearned, old)),
        drawn=_drawn(relearned, old, _name(gold)),
        facts={"control": _name(gold)} | _attack(said),
        advice=_advice(gold, held),
    )


def shuffled(model: Model, seed: int) -> Model:
    """Return a copy of a model in which the entries of each matrix are shuffled."""
    module, draw = deepcopy(model.module), torch.Generator().manual_seed(seed)
    for weight in module.parameters():
        if weight.ndim > 1:
            order = torch.randperm(weight.numel(), generator=draw).to(weight.device)
            weight.data = weight.data.flatten()[order].view_as(weight)
    return Model(module, model.processor, model.config, model.name, model.task)


def _states(part: Any, of_class: str | None, side: str) -> tuple[Any, Any]:
    """Return the states before the answers, of at most ``MOST`` rows, and their classes."""
    keys = [*part.rows]
    is_head = part.logits is not None and part.rows[keys[-1]].shape == part.logits.shape
    x = part.rows[keys[-2] if is_head and len(keys) > 1 else keys[-1]].double().numpy()
    label = part.label.numpy()
    if of_class is not None:
        names = part.label_names or [str(k) for k in range(int(label.max()) + 1)]
        mine = (label == list(names).index(of_class)) == (side == "forget")
        x, label = x[mine], label[mine]
    return x[:MOST], label[:MOST]


def _check(sides: list[tuple[Any, Any]]) -> None:
    (x, label), (others, kinds) = sides
    shared = sorted({*label.tolist()} & {*kinds.tolist()})
    if min(len(x), len(others)) < LEAST or (label < 0).any() or shared:
        raise InputError(
            f"unlearning_audit: expected {LEAST} or more labelled examples of classes that are in "
            f"the forget part alone, got {len(x)} to forget and {len(others)} to retain, with the "
            f"classes {shared} in both. Look at label_column."
        )


def _head(x: Any, label: Any, others: Any, kinds: Any) -> Any:
    """Return a head that learned few forget examples, as heavy as another class, and the others."""
    head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    weight = np.full(len(x), len(others) / len(set(kinds)) / len(x))
    weight = np.r_[weight, np.ones(len(others))]
    rows, labels = np.r_[x, others], np.r_[label, kinds]
    return head.fit(rows, labels, logisticregression__sample_weight=weight)


def _relearned(forget: tuple[Any, Any], retain: tuple[Any, Any], seed: int) -> list[float]:
    """Return the accuracy of a new head on unseen forget examples, by how many it was shown."""
    (x, label), draw = forget, np.random.default_rng(seed)
    found = np.zeros((DRAWS, len(SHOTS)))
    for i in range(DRAWS):
        order = draw.permutation(len(x))
        test = order[len(x) // 2 :]
        for j, n in enumerate(SHOTS):
            few = order[: min(n, len(x) // 2)]
            said = _head(x[few], label[few], *retain).predict(x[test])
            found[i, j] = (said == label[test]).mean()
    return found.mean(0).tolist()


def _read_by_old(states: dict[str, Any]) -> dict[str, float]:
    """Return the accuracy on forget examples of a head that learned half of them before."""
    (x, label), retain = states["before"]
    head, rest = _head(x[::2], label[::2], *retain), label[1::2]
    wide = {name: both[0][0][1::2] for name, both in states.items()}
    return {
        name: float((head.predict(rows) == rest).mean()) if rows.shape[1] == x.shape[1] else 0.0
        for name, rows in wide.items()
    }


def _name(gold: Model | None) -> str:
    return "shuffled weights" if gold is None else "a model that never saw them"


def _rows(
    said: Any, relearned: dict[str, list[float]], old: dict[str, float]
) -> list[dict[str, Any]]:
    stands = {"before": said.before, "after": said.after} | (
        {} if said.retrained is None else {"control": said.retrained}
    )
    return [
        {
            "model": name,
            **{f"{part} accuracy": s.accuracy for part, s in stands.get(name, {}).items()},
            "head of before": old[name],
            **{f"new head, {n} shown": found for n, found in zip(SHOTS, scores, strict=True)},
        }
        for name, scores in relearned.items()
    ]


def _attack(said: Any) -> dict[str, str]:
    if said.attack is None:
        return {}
    now, then = said.attack, said.attack_before
    return {
        "attack by low loss (0.5 = nothing to tell)": f"{now.value:.3f}, before {then.value:.3f}"
    }


def _drawn(
    relearned: dict[str, list[float]], old: dict[str, float], control: str
) -> dict[str, Any]:
    ways = {"head that learned on the states before": old} | {
        f"new head, {n} shown": {name: scores[j] for name, scores in relearned.items()}
        for j, n in enumerate(SHOTS)
    }
    rows = [
        {"reader": way, "accuracy": score, "model": control if name == "control" else name}
        for way, scores in ways.items()
        for name, score in scores.items()
    ]
    title = "What readers of the states still get right of the forgotten class"
    x = ChartAxis("accuracy", title="accuracy on forget examples", share=True, low=0.0, high=1.0)
    return marks(title, rows, x, ChartAxis("reader", title=""), by="model", size=110, filled=True)


def _advice(gold: Model | None, held: Any) -> tuple[str, ...]:
    found = []
    if gold is None:
        found.append(
            "Shuffled weights are a weak control: states of a model that never saw a class often "
            "tell it apart too. Pass a model that was trained without it as gold."
        )
    if held is None:
        found.append("Pass unseen examples of the forgotten classes as held for an attack by loss.")
    return tuple(found)
