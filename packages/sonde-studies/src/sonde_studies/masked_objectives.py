"""Test whether reconstructing hidden patches helps learning from few labels.

A small transformer of sixteen patches of a digit learns from sixty labels. Beside them it rebuilds
hidden patches of digits without labels, or answers from rebuilt states of the labelled ones.
"""

from typing import Any, Literal, final, get_args

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.train import MaskedFeatures
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import accuracy, digit_images, drawn, minimise

DIM, LABELLED, FREE, LEARN, TINY, NOISE = 32, 60, 1_260, 300, 3, 0.3
Arm = Literal["plain", "pixels", "features", "hidden", "head"]
ARMS: tuple[Arm, ...] = get_args(Arm)


@final
class MaskedObjectivesStudy(Study):
    """Cross-entropy alone, on hidden patches too, and with three objectives on hidden patches."""

    name = "masked-objectives"
    title = "does rebuilding hidden patches help where labels are few?"
    paper = "zhou2025mfm"
    fidelity = (
        "digits and a transformer of two layers; the paper also classifies unlabelled images of "
        "the other domain, by labels that the model gives them; hidden states teach the patches' "
        "embedding alone, for they have a rebuilder of their own"
    )
    data = "scikit-learn digits: 60 labels, 1,200 images without; noise of 0.3 for the other domain"
    claims = (
        Claim("pixels", "Rebuilding hidden pixels of images without labels helps.",
              "accuracy, pixels less labels alone",
              arms=("pixels", "plain")),
        Claim("features", "Rebuilding hidden states of images without labels helps as well.",
              "accuracy, features (a rebuilder doubles the parameters) less labels alone",
              arms=("features", "plain")),
        Claim("head", "A task head on rebuilt states helps in another domain.",
              "accuracy on noisy digits, task head (a rebuilder doubles the parameters) less "
              "labels alone",
              arms=("head", "plain")),
        Claim("rebuilt", "In another domain a task head on rebuilt states helps more than on "
              "states hidden and not rebuilt.",
              "accuracy on noisy digits, task head less hidden states in place of the rebuilt, "
              "without the rebuilder's half of the parameters",
              arms=("head", "hidden")),
    )  # fmt: skip
    null = Claim("lot", "Labels by lot teach nothing beside hidden pixels.",
                 "accuracy less 1/10, pixels")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train five arms, and one with random labels."""
        steps, found = TINY if tiny else LEARN, dict[str, tuple[float, float]]()
        x, label = digit_images(seed)
        for arm in ARMS:
            tick(arm)
            found[arm] = _accuracy(arm, x, label, seed, steps)
        tick("labels by lot")
        lot = torch.randint(10, label.shape, generator=torch.Generator().manual_seed(seed))
        lot[FREE:] = label[FREE:]
        return {
            "pixels": found["pixels"][0] - found["plain"][0],
            "features": found["features"][0] - found["plain"][0],
            "head": found["head"][1] - found["plain"][1],
            "rebuilt": found["head"][1] - found["hidden"][1],
            "lot": _accuracy("pixels", x, lot, seed, steps)[0] - 0.1,
            **{f"accuracy | {arm}": value for arm, (value, _) in found.items()},
            **{f"accuracy, noisy | {arm}": value for arm, (_, value) in found.items()},
        }


class _Mixing(nn.Module):
    """Position embeddings, and two transformer layers."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(16, DIM) / 10)
        layer = nn.TransformerEncoderLayer(DIM, 4, 2 * DIM, 0.0, "gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layers(tokens + self.place)


class _Answers(nn.Module):
    """A net's classification head over tokens."""

    def __init__(self, net: "_Net") -> None:
        super().__init__()
        self.net = net

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net.answers(tokens)


class _Net(nn.Module):
    """Patches of 2 x 2 pixels, a transformer, and a linear head on their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Linear(4, DIM), _Mixing(), nn.Linear(DIM, 10)

    def answers(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(tokens).mean(1))

    def forward(self, patches: Tensor) -> Tensor:
        return self.answers(self.embed(patches))


def _accuracy(arm: Arm, x: Tensor, label: Tensor, seed: int, steps: int) -> tuple[float, float]:
    """Return the accuracy on test digits, without and with noise."""
    patches = rearrange(x, "n 1 (y a) (x b) -> n (y x) (a b)", a=2, b=2)
    net = drawn(_Net, seed)
    hide: Any = drawn(lambda: _objective(arm, net, seed), seed)
    if arm != "plain":
        hide(net.embed(patches[:2]), patches[:2], label[:2])  # finds its widths
    own = {id(p): p for module in (net, hide) for p in module.parameters()}

    def loss(rows: Tensor) -> Tensor:
        labelled = rows % LABELLED
        task = cross_entropy(net(patches[labelled]), label[labelled])
        if arm == "plain":
            return task
        if arm == "hidden":  # as the task head, with the hidden states as they are
            return task + cross_entropy(
                net.answers(hide.change(net.embed(patches[labelled]))), label[labelled]
            )
        seen = labelled if arm == "head" else rows
        return task + hide(net.embed(patches[seen]), patches[seen], label[seen])

    minimise(loss, own.values(), FREE, steps=steps, seed=seed, rate=2e-3)
    draw = torch.Generator().manual_seed(seed + 1)
    new = patches[FREE:]
    noisy = new + NOISE * torch.randn(new.shape, generator=draw)
    return accuracy(net, new, label[FREE:]), accuracy(net, noisy, label[FREE:])


def _objective(arm: Arm, net: _Net, seed: int) -> nn.Module:
    if arm == "plain":
        return nn.Identity()
    if arm == "pixels":
        return MaskedFeatures("pixels", width=4, rebuilder=net.body, seed=seed)
    head = _Answers(net) if arm == "head" else None
    return MaskedFeatures("features", rebuilder=_Mixing(), head=head, seed=seed)
