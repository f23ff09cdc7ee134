"""Probe accuracies before and after an edit, at the edited site and all later sites.

An eraser guards against linear readers at its own site. A two-layer probe may still read the
concept there, and later layers may compute it anew from the rest of the states (self-repair).
"""

from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.core.stream import Stream
from sonde.engine.steps import Descent, minimise, seeded

MOST_ROWS = 4096
HIDDEN, EPOCHS, BATCH, RATE, DECAY = 64, 30, 256, 3e-3, 1e-2
STEPS = 100


@final
@dataclass(frozen=True)
class Probed:
    """Accuracy of probes on held-out rows.

    Parameters
    ----------
    linear, two_layer : float
        Multinomial logistic regression, and a net with one hidden layer of 64 units.
    majority : float
        Share of the class that is most frequent in training: the score of a blind guess.
    n : int
        Held-out rows.
    """

    linear: float
    two_layer: float
    majority: float
    n: int


def probes_along(stream: Stream, *, held: float = 0.3, seed: int = 0) -> dict[str, Probed]:
    """Return the accuracy of probes at every site of a stream.

    Open an edit around it to see what is left: ``with sonde.editing(model, edit, site):
    probes_along(sonde.read(model, data, sites=later))``. At most 4,096 labelled rows are taken;
    whole groups are held out, the same at each call.

    Parameters
    ----------
    stream : Stream
        With labels.
    held : float, default=0.3
        Share of the groups that is held out.
    seed : int, default=0
        Seed of the probes and of the choice of held-out groups.

    Raises
    ------
    InputError
        If the rows have no labels, or there are too few of them to hold some out.
    """
    rows: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {s.key: [] for s in stream.schema}
    count = dict.fromkeys(rows, 0)
    for batch in stream:
        for key, taken in rows.items():
            label = batch.column("label", key)
            is_known = label >= 0
            if count[key] < MOST_ROWS and bool(is_known.any()):
                group = batch.column("group", key)
                taken.append((batch.rows[key].cpu()[is_known], label[is_known], group[is_known]))
                count[key] += int(is_known.sum())
        if min(count.values(), default=0) >= MOST_ROWS:
            break
    if not all(rows.values()):
        raise InputError("probes_along: expected rows with labels, got none. Read labelled data.")
    accuracies: dict[str, Probed] = {}
    for key, taken in rows.items():
        x, label, group = (torch.cat(part)[:MOST_ROWS] for part in zip(*taken, strict=True))
        accuracies[key] = probe_accuracy(x, label, _held_out(group, held, seed), seed=seed)
    return accuracies


def probe_accuracy(
    x: Float[Tensor, "row dim"],
    label: Int[Tensor, "row"],
    is_held: Bool[Tensor, "row"],
    *,
    seed: int = 0,
) -> Probed:
    """Return the accuracy of probes on held-out rows, trained on the other rows.

    Parameters
    ----------
    x : Float[Tensor, "row dim"]
        Rows of states.
    label : Int[Tensor, "row"]
        Class of each row.
    is_held : Bool[Tensor, "row"]
        Rows that are held out.
    seed : int, default=0
        Seed of the choice of held-out rows.

    Raises
    ------
    InputError
        If no row is left to train on, or none is held out.
    """
    n = int(is_held.sum())
    if n == 0 or n == len(x):
        raise InputError(
            f"probe_accuracy: expected rows to train on and held-out rows, got {len(x) - n} and "
            f"{n}. Give rows of more groups."
        )
    classes, y = torch.unique(label, return_inverse=True)
    train = x[~is_held].double()
    z = ((x.double() - train.mean(0)) / train.std(0).clamp(min=1e-12)).float()
    data = z[~is_held], y[~is_held], z[is_held]
    with seeded(seed):
        guesses = {
            "linear": _linear(*data, len(classes)),
            "two_layer": _two_layer(*data, len(classes)),
            "majority": torch.bincount(data[1]).argmax().expand(n),
        }
    return Probed(
        n=n, **{name: float((g == y[is_held]).float().mean()) for name, g in guesses.items()}
    )


def _held_out(group: Int[Tensor, "row"], held: float, seed: int) -> Bool[Tensor, "row"]:
    """Return a mask of the rows in held-out groups."""
    names, member = torch.unique(group, return_inverse=True)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
    chosen = torch.zeros(len(names), dtype=torch.bool)
    chosen[order[: round(held * len(names))]] = True
    return chosen[member]


def _linear(x: Tensor, y: Tensor, fresh: Tensor, n_classes: int) -> Int[Tensor, "row"]:
    net = nn.Linear(x.shape[1], n_classes)
    nn.init.zeros_(net.weight)

    def loss() -> Tensor:
        return nn.functional.cross_entropy(net(x), y) + DECAY / 2 * net.weight.square().sum()

    minimise(loss, list(net.parameters()), STEPS)
    return net(fresh).argmax(1)


def _two_layer(x: Tensor, y: Tensor, fresh: Tensor, n_classes: int) -> Int[Tensor, "row"]:
    net = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.GELU(), nn.Linear(HIDDEN, n_classes))
    adam = partial(torch.optim.AdamW, weight_decay=DECAY)
    parts = (rows for _ in range(EPOCHS) for rows in torch.randperm(len(x)).split(BATCH))
    Descent("probes_along", net.parameters(), RATE, adam).run(
        lambda rows: nn.functional.cross_entropy(net(x[rows]), y[rows]), parts
    )
    return net(fresh).argmax(1)
