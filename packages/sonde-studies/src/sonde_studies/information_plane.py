"""Test whether layers compress their input after learning the label, by each estimator.

All inputs of 12 bits are there to train on; several estimators look at the same nets.
"""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from sonde.measure import information_plane
from sonde_studies._bit_rule import AT, STEPS, bit_rule, checkpoints
from sonde_studies._layers import layers_of
from sonde_studies._phases_of_learning import phases
from sonde_studies._separation import rank_correlation
from sonde_studies.arms import note_for, part
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import accuracy

FORMS: dict[str, dict[str, Any]] = {
    "bins": {"estimator": "bins", "low": -1.0, "high": 1.0},
    "adaptive bins": {"estimator": "adaptive_bins"},
    "adaptive kernel": {"estimator": "adaptive_kde", "m": 1024},
    "codes": {"estimator": "compressed", "m": 1024},
}
ARMS: dict[str, tuple[type[nn.Module], float, tuple[str, ...]]] = {
    "tanh": (nn.Tanh, 0.0, ("bins", "adaptive bins", "adaptive kernel")),
    "relu": (nn.ReLU, 0.0, tuple(FORMS)),
    "relu, decay": (nn.ReLU, 0.1, ("adaptive bins",)),
}
"""Activation, weight decay and estimators of each net."""
ALL_LAYERS = {(name, f"adaptive {form}") for name in list(ARMS)[1:] for form in ("bins", "kernel")}
"""Net and estimator of claims about all layers; the others look at the last one alone."""
FORGOTTEN = (
    "bits, at the checkpoint of nine that the other half of inputs chose, less after all updates"
)


@final
class InformationPlaneStudy(Study):
    """Nets of five narrow layers on a 12-bit rule; every estimator at every checkpoint.

    A layer forgets its largest information about the input less that at the end. One half of the
    inputs chooses the checkpoint of the largest, the other half judges.
    """

    name = "information-plane"
    title = "do layers forget their input after they have learned, and who says so?"
    paper = "shwartzziv2017opening"
    fidelity = (
        "the task's size and layers as published, another rule; adaptive estimators as published "
        "but for the kernel's share; AdamW in place of SGD; rows for estimates are one half of all "
        "inputs, and the other half to choose the largest"
    )
    data = "synthetic: all 4,096 inputs of 12 bits, label a threshold of a quadratic form"
    seconds = 40.0
    claims = (
        Claim(
            "tanh, bins",
            "By bins from -1 to 1 the last layer of a tanh net ends 0.1 bits below its largest.",
            FORGOTTEN,
            above=0.1,
            arms=("tanh, net", "tanh, bins, at its largest"),
        ),
        Claim(
            "tanh, adaptive bins",
            "So it does by adaptive bins.",
            FORGOTTEN,
            above=0.1,
            arms=("tanh, net", "tanh, adaptive bins, at its largest"),
        ),
        Claim(
            "relu, adaptive bins",
            "By adaptive bins the last layer of a ReLU net, too, ends 0.1 bits below its largest.",
            FORGOTTEN,
            above=0.1,
            arms=("relu, net", "relu, adaptive bins, at its largest"),
        ),
        Claim(
            "relu, adaptive kernel",
            "An adaptive kernel says so of the ReLU net too.",
            FORGOTTEN,
            above=0.1,
            arms=("relu, net", "relu, adaptive kernel, at its largest"),
        ),
        Claim(
            "relu, codes",
            "And so do codes of an autoencoder.",
            FORGOTTEN,
            above=0.1,
            arms=("relu, net", "relu, codes, at its largest"),
        ),
        Claim(
            "decay",
            "Weight decay makes the layers of the ReLU net forget more.",
            "difference of bits, mean over layers, adaptive bins",
            arms=("relu, decay, net", "relu, net"),
        ),
        Claim(
            "estimators agree",
            "Adaptive bins and adaptive kernel rank layers and steps alike.",
            "rank correlation, ReLU",
        ),
        Claim(
            "long",
            "More than half of the updates of a tanh net come after its last layer has its largest "
            "information about the input.",
            "share of the updates after that checkpoint, by bins, less 0.5",
        ),
        Claim(
            "label",
            "In these updates its last layer loses none of its information about the label, to "
            "0.05 bits.",
            "bits about the label in the end less those at that checkpoint, and 0.05",
            arms=("plane, in the end", "plane, at its largest"),
        ),
        Claim(
            "depth",
            "With as many parameters in more layers, the same loss is reached in fewer updates.",
            "doublings of updates to a loss of 0.3 nats, two layers less five",
            arms=("five layers", "two layers"),
        ),
    )
    null = Claim(
        "halved",
        "Adaptive bins find as much in states of half the size: what shrinks is not forgotten.",
        "bits, last layer of the ReLU net in the end less the same at half size",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train the nets, and estimate each layer's information at each checkpoint."""
        x, label = bit_rule(seed)
        lost: dict[tuple[str, str], list[float]] = {}
        flat: dict[str, list[float]] = {}
        figures, halved = dict[str, float](), 0.0
        for name, (act, decay, _) in ARMS.items():
            tick(name)
            with part(f"{name}, net"):
                nets = checkpoints(x, label, act, decay, seed, 40 if tiny else STEPS)
            sides = [x[i :: 8 if tiny else 2] for i in (0, 1)]
            read = nets[-2:] if tiny else nets
            states = [[layers_of(net, half) for net in read] for half in sides]
            forms = {form: FORMS[form] for form in ARMS[name][2]}
            for form, options in forms.items():
                some = slice(None) if (name, form) in ALL_LAYERS else slice(-1, None)
                held, other = (
                    torch.tensor([[_bits(h, options) for h in one[some]] for one in half])
                    for half in states
                )
                most = other.argmax(0)
                lost[name, form] = (held.gather(0, most[None])[0] - held[-1]).tolist()
                flat[f"{name}, {form}"] = held.flatten().tolist()
                figures[f"forgotten, last layer | {name}, {form}"] = lost[name, form][-1]
                figures[f"held at the end, last layer | {name}, {form}"] = float(held[-1, -1])
                at = [*AT, STEPS][int(most[-1])]
                figures[f"step of the maximum, last layer | {name}, {form}"] = float(at)
                n_weights = sum(p.numel() for p in nets[-1].parameters())
                largest = f"{name}, {form}, at its largest"
                note_for(largest, updates=at, rows=len(x), parameters=n_weights)
            figures[f"accuracy | {name}"] = accuracy(nets[-1], x, label)
            if name == "relu":
                halved = lost_by_size(states[0][-1][-1], "adaptive bins")
        tick("label and depth")
        learning = phases(seed, tiny)
        bins = "adaptive bins"
        plain, decayed = lost["relu", bins], lost["relu, decay", bins]
        return {
            "tanh, bins": lost["tanh", "bins"][-1],
            "tanh, adaptive bins": lost["tanh", bins][-1],
            "relu, adaptive bins": plain[-1],
            "relu, adaptive kernel": lost["relu", "adaptive kernel"][-1],
            "relu, codes": lost["relu", "codes"][-1],
            "decay": sum(decayed) / len(decayed) - sum(plain) / len(plain),
            "forgotten, first layer | relu, adaptive bins": plain[0],
            "estimators agree": rank_correlation(
                flat["relu, adaptive bins"], flat["relu, adaptive kernel"]
            ),
            "halved": halved,
            **learning,
            **figures,
        }


def lost_by_size(x: Tensor, form: str) -> float:
    """Return by how many bits less an estimator finds in states of half the size."""
    return _bits(x, FORMS[form]) - _bits(x / 2, FORMS[form])


def _bits(x: Tensor, options: Mapping[str, Any]) -> float:
    if not bool((x != x[:1]).any()):
        return 0.0
    return float(information_plane(x, **{"m": len(x), **options}).bits())
