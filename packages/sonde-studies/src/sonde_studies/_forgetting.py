"""Digits, a small conv net trained on them, and measures of a class that it should forget."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core import Inputs, Model
from sonde.data import open_inputs
from sonde.edit import Forgotten, Retrain, forgotten
from sonde_studies.arms import note
from sonde_studies.study import Claim
from sonde_studies.worlds.learning import digit_images

TRAIN, CLASS = 1200, 3
STEPS, RATE, BATCH = 60, 3e-3, 128
EPOCHS = 7
"""Of the net that is trained anew: as many steps as the first one had."""
RELEARN_RATE, BACK, MOST = 1e-3, 0.8, 200
"""Of learning a class again: rate, the accuracy at which it is back, most steps."""
Sides = dict[str, Inputs]
UNSEEN = Claim(
    "attack on retrained",
    "Nobody can tell the class's training digits from others on a net that never saw them.",
    "AUROC of a membership attack by low loss",
    above=0.5,
)


def world(seed: int, tiny: bool, finished: bool = False) -> tuple[Model, Tensor, Tensor, int]:
    """Return a net trained on ten digits, all labelled images, and the training set's size.

    Parameters
    ----------
    seed : int
    tiny : bool
    finished : bool, default=False
        Train a net with norms, five times as long.
    """
    images, label = digit_images(seed)
    n = TRAIN // 4 if tiny else TRAIN
    net = trained(images[:n], label[:n], seed, finished=finished)
    return Model(net), images, label, n


def trained(
    x: Tensor, label: Tensor, seed: int, order: int | None = None, finished: bool = False
) -> nn.Sequential:
    """Return a small conv net, trained only briefly so that its gradients are not just noise.

    A finished net has a norm after each convolution and is trained five times as long.

    The seed draws the first weights, and the batches unless these have a seed ``order`` of their
    own.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            *([nn.GroupNorm(4, 16)] * finished),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            *([nn.GroupNorm(4, 32)] * finished),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 10),
        )
        note(rows=len(x))
        optimiser = torch.optim.Adam(net.parameters(), lr=RATE)
        if order is not None:
            torch.manual_seed(order)
        for _ in range(5 * STEPS if finished else STEPS):
            chosen = torch.randint(len(x), (BATCH,))
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[chosen]), label[chosen]).backward()
            optimiser.step()
    return net.eval()


def silenced(module: nn.Module) -> nn.Module:
    """Return a copy of a net that never answers the class; its states are unchanged."""
    copy = deepcopy(module)
    head = [m for m in copy.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        head.bias[CLASS] -= 1e3
    return copy


def sides_of(model: Model, x: Tensor, label: Tensor, n: int) -> Sides:
    """Return the class to forget and the others, of training and of test digits."""
    items: list[dict[str, Any]] = [
        {"input": row, "label": int(c)} for row, c in zip(x, label, strict=True)
    ]
    seen, fresh = items[:n], items[n:]

    def part(rows: list[dict[str, Any]], of_class: bool) -> Inputs:
        return open_inputs(model, [r for r in rows if (r["label"] == CLASS) == of_class])

    return {
        "forget": part(seen, True),
        "retain": part(seen, False),
        "held": part(fresh, True),
        "others": part(fresh, False),
    }


def retrained(
    model: Model, sides: Sides, seed: int, tiny: bool, finished: bool = False
) -> nn.Module:
    """Return a net that was trained anew without the class, for as many steps as the first net."""
    epochs = 5 * EPOCHS if finished else EPOCHS
    rule = Retrain(rate=RATE, epochs=2 if tiny else epochs, seed=seed)
    return rule.plan(model, sides).fold(model)


def stand(
    model: Model, changed: nn.Module, sides: Sides, anew: nn.Module
) -> tuple[Forgotten, Forgotten]:
    """Return the state of the class to forget and, second, of test digits of other classes."""
    forget, held, others = sides["forget"], sides["held"], sides["others"]
    return (
        forgotten(model, changed, forget, sides["retain"], held, anew),
        forgotten(model, changed, forget, others, None, anew),
    )


def figures_of(
    found: Mapping[str, tuple[Forgotten, Forgotten]], arm: str, margin: float
) -> dict[str, float]:
    """Return the claims about one arm, and the figures of every arm, from what ``stand`` returned.

    Parameters
    ----------
    found : mapping
        The class to forget and the other classes, by arm.
    arm : str
        The one that claims are about.
    margin : float
        What the accuracy on the other classes may lose.
    """
    of_class, of_rest = found[arm]
    before, others = of_class.before["held"].accuracy, of_rest.before["retain"].accuracy
    lost = 1 - of_class.after["held"].accuracy / before
    assert of_class.retrained is not None
    assert of_class.attack_retrained is not None
    figures = {
        "near retraining": lost - 0.9,
        "half forgotten": lost - 0.5,
        "retained": of_rest.after["retain"].accuracy - others + margin,
        "attack on retrained": float(of_class.attack_retrained.value),
        "forgotten class | before": before,
        "other classes | before": others,
        "forgotten class | trained anew": of_class.retrained["held"].accuracy,
    }
    for name, (own, rest) in found.items():
        assert own.attack is not None
        figures |= {
            f"forgotten class | {name}": own.after["held"].accuracy,
            f"other classes | {name}": rest.after["retain"].accuracy,
            f"attack | {name}": float(own.attack.value),
        }
    return figures


def items_of_class(model: Model, x: Tensor, label: Tensor, kind: int) -> Inputs:
    """Return the images of one class, with their label."""
    chosen = x[label == kind]
    return open_inputs(model, [{"input": row, "label": kind} for row in chosen])


@torch.enable_grad()
def steps_to_relearn(
    net: nn.Module, shown: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor]
) -> int:
    """Return the training steps until a net names the class again, ``MOST`` if it never does.

    The head's row of the class is set to 0 first, in every net, so that a class that is only
    masked starts where a class starts that was never seen. Then all weights are trained on a few
    examples. The class is back at a balanced accuracy of ``BACK``, of the class against the others.

    Parameters
    ----------
    net : nn.Module
        Unchanged.
    shown, held : (images, labels)
        To train on, all in each step, and to test on.
    """
    copy = deepcopy(net)
    head = [m for m in copy.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        head.weight[CLASS], head.bias[CLASS] = 0.0, 0.0
    note(rows=len(shown[0]))
    optimiser = torch.optim.Adam(copy.parameters(), lr=RELEARN_RATE)
    own = held[1] == CLASS
    for step in range(MOST):
        with torch.no_grad():
            named = (copy(held[0]).argmax(1) == CLASS).double()
        if float(named[own].mean() + 1 - named[~own].mean()) / 2 >= BACK:
            return step
        optimiser.zero_grad()
        nn.functional.cross_entropy(copy(shown[0]), shown[1]).backward()
        optimiser.step()
    return MOST


def few_of_each(label: Tensor, n: int) -> Tensor:
    """Return the positions of the first ``n`` examples of each class."""
    return torch.cat([torch.nonzero(label == c)[:n, 0] for c in label.unique()])
