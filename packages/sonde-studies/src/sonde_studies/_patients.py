"""Rows of diabetes patients that a small net learned and is made to forget, audited by patient."""

from typing import Any

import torch
from sklearn.datasets import load_diabetes  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, nn

from sonde import Model
from sonde.data import open_inputs
from sonde.edit import GradientAscent, RandomLabel
from sonde_studies.recipes.unlearning_audit import unlearning_audit
from sonde_studies.worlds.learning import accuracy, drawn, learn_labels

CLASSES, HIDDEN, STEPS, TINY = 3, 64, 600, 20
FORGET, RETAIN = 60, 200
"""Patients to forget and to keep; no net sees the other 182."""
Rows = list[dict[str, Any]]


def patients(seed: int) -> dict[str, Rows]:
    """Return one row for each patient, in the parts ``forget``, ``retain`` and ``held``.

    Columns are standardised. The label is the third of all patients, by how far the disease has
    progressed a year later, that the patient is in.
    """
    found: Any = load_diabetes()
    x, progress = torch.from_numpy(found.data).float(), torch.from_numpy(found.target)
    x = (x - x.mean(0)) / x.std(0)
    label = progress.argsort().argsort() * CLASSES // len(progress)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    parts = zip(
        ("forget", "retain", "held"), order.tensor_split([FORGET, FORGET + RETAIN]), strict=True
    )
    return {
        name: [{"id": f"patient {i}", "input": x[i], "label": int(label[i])} for i in at.tolist()]
        for name, at in parts
    }


def forgotten_patients(seed: int, tiny: bool) -> dict[str, float]:
    """Return audits of the patients to forget, and accuracies on patients that no net saw.

    Keys are ``audit | MODEL``, the AUROC of an attack by low loss less the loss of a net that never
    saw the patients to forget, and ``unseen | MODEL``. Models are ``before``, made to forget by
    ``wrong labels`` and by ``rising loss``, and ``trained anew``, a second net without them. All
    nets have the same first weights; those without the patients differ in their batches.
    """
    parts, steps = patients(seed), TINY if tiny else STEPS
    before = _schooled(parts["forget"] + parts["retain"], steps, seed)
    gold, anew = (_schooled(parts["retain"], steps, seed, seed + more) for more in (100, 200))
    inputs = {name: open_inputs(before, parts[name]) for name in ("forget", "retain")}
    epochs = 2 if tiny else 10
    plans = {
        "wrong labels": RandomLabel(epochs=epochs, seed=seed).plan(before, inputs),
        "rising loss": GradientAscent(rate=1e-3, epochs=epochs, seed=seed).plan(before, inputs),
    }
    models = {name: Model(plan.fold(before)) for name, plan in plans.items()}
    models |= {"before": before, "trained anew": anew}
    found = dict[str, float]()
    for name, model in models.items():
        audit = unlearning_audit(
            before, model, parts["forget"], parts["retain"], held=parts["held"], gold=gold,
            seed=seed, progress=False,
        )  # fmt: skip
        found[f"audit | {name}"] = float(audit.value)
        found[f"unseen | {name}"] = accuracy(model.module, *_stacked(parts["held"]))
    return found


def _schooled(rows: Rows, steps: int, seed: int, order: int | None = None) -> Model:
    """Return a net trained on rows until it knows them; ``order`` draws the batches."""
    x, label = _stacked(rows)
    net = drawn(
        lambda: nn.Sequential(
            nn.Linear(x.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(),
            nn.Linear(HIDDEN, CLASSES),
        ),
        seed,
    )  # fmt: skip
    learn_labels(net, x, label, steps=steps, seed=seed if order is None else order)
    return Model(net)


def _stacked(rows: Rows) -> tuple[Tensor, Tensor]:
    return torch.stack([r["input"] for r in rows]), torch.tensor([r["label"] for r in rows])
