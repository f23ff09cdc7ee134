"""Convolution filters chosen for each input, against a fixed choice of equal size.

Small convolutional nets on digits. What is counted are multiplications; the time is measured too.
"""

import time
from copy import deepcopy
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde import Model
from sonde.compress import DynamicPrune, hot_filters
from sonde.data import open_inputs
from sonde_studies.arms import note_again
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import accuracy, digit_images, drawn, learn_labels, minimise

FIT, STEPS, AFTER, TINY, HEAT, LAYERS = 1_000, 200, 150, 6, 0.8, ("2", "5")


@final
class DynamicFiltersStudy(Study):
    """Masks that a predictor chooses for each digit, and one mask for all digits."""

    name = "dynamic-filters"
    title = "are filters that are chosen for each input better than a static choice?"
    paper = "elkerdawy2022ftwt"
    fidelity = "targets and predictors are the paper's; the dense net's answers in place of labels"
    data = "digits: 1,000 to train on, 797 to judge; three convolutions, two of them pruned"
    claims = (
        Claim("kept", "Filters of 80% of the heat, with predictors of a twentieth of the "
              "parameters, lose less than two points.",
              "accuracy, dynamic less dense after as many steps, and 0.02",
              arms=("dynamic", "dense, as long")),
        Claim("static", "A static mask of as many filters, trained as long without a predictor's "
              "parameters, is less right.",
              "accuracy, dynamic less static",
              arms=("dynamic", "static")),
        Claim("lot", "So are masks that were predicted for other inputs.",
              "accuracy, own masks less masks of other digits",
              arms=("own masks", "masks of other digits")),
        Claim("stated", "The multiplications that run are those of the targets, to five points.",
              "0.05 less the distance of the share that runs from the stated share"),
        Claim("seconds saved", "The answers take less time than the dense net's.",
              "time for 797 digits, share that is saved"),
    )  # fmt: skip
    null = Claim("lots", "Pruned dynamically, a net of labels by lot tells none of other rows.",
                 "accuracy less 0.1")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a net, and prune it in each way."""
        x, label = digit_images(seed)
        steps, after = (TINY, TINY) if tiny else (STEPS, AFTER)
        fresh, truth = x[FIT:], label[FIT:]

        def right(net: nn.Module) -> float:
            return accuracy(net, fresh, truth)

        tick("dense")
        dense = _trained(x[:FIT], label[:FIT], seed, steps)
        tick("dense, as long")
        longer = _trained(x[:FIT], label[:FIT], seed, steps + after)
        for name in ("dynamic", "static"):
            note_again(name, "dense")
        tick("dynamic")
        found = _dynamic(dense, x[:FIT], seed, after)
        dynamic = right(found.module)
        for name in ("own masks", "masks of other digits"):
            note_again(name, "dynamic")
        chosen = [found.module.get_submodule(name).chosen for name in LAYERS]
        tick("static")
        share = [float(mask.double().mean()) for mask in chosen]  # pyright: ignore
        static = right(_static(dense, x[:FIT], share, seed, after))
        first, second = (mask.double().mean(1) for mask in chosen)  # pyright: ignore
        sizes = torch.tensor([16 * 24 * 64.0, 24 * 24 * 16.0])
        runs = torch.stack([first.mean(), (first * second).mean()])
        ran = float((runs * sizes).sum() / sizes.sum())
        tick("labels by lot")
        return {
            "kept": dynamic - right(longer) + 0.02,
            "static": dynamic - static,
            "lot": dynamic - _shuffled(found.module, fresh, truth, seed),
            "stated": 0.05 - abs(ran - (1 - found.saved)),
            "seconds saved": 1 - _time(found.module, fresh) / _time(dense, fresh),
            "lots": by_lot(x, seed, (steps, after)),
            "accuracy | dense": right(dense),
            "accuracy | dense, as long": right(longer),
            "accuracy | dynamic": dynamic,
            "accuracy | static": static,
            "share of multiplications | run": ran,
            "share of multiplications | stated": 1 - found.saved,
        }


def by_lot(x: Tensor, seed: int, steps: tuple[int, int]) -> float:
    """Return the accuracy after training and pruning on labels by lot, less that of chance."""
    lots = labels_by_lot(x, 10, seed)
    dense = _trained(x[:FIT], lots[:FIT], seed, steps[0])
    return accuracy(_dynamic(dense, x[:FIT], seed, steps[1]).module, x[FIT:], lots[FIT:]) - 0.1


def _dynamic(dense: nn.Module, x: Tensor, seed: int, steps: int) -> Any:
    rule = DynamicPrune(HEAT, layers=LAYERS, steps=steps, seed=seed)
    return rule.fit(Model(dense), open_inputs(Model(dense), x))


def _net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 10),
    )  # fmt: skip


def _trained(x: Tensor, label: Tensor, seed: int, steps: int) -> nn.Sequential:
    net = drawn(_net, seed)
    learn_labels(net, x, label, steps=steps, seed=seed)
    return net


class _Masked(nn.Module):
    """A convolution that uses the same few filters for all inputs."""

    def __init__(self, conv: nn.Module, mask: Tensor) -> None:
        super().__init__()
        self.conv, self.mask = conv, nn.Buffer(mask.float())

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.mask[:, None, None]


def _static(dense: nn.Sequential, x: Tensor, share: list[float], seed: int, steps: int) -> Any:
    """Return a copy with each layer's most used filters, distilled from the dense net."""
    net = deepcopy(dense)
    for name, kept in zip(LAYERS, share, strict=True):
        at = int(name)
        with torch.no_grad():
            hot = hot_filters(dense[: at + 1](x), HEAT).double().mean(0)
        mask = torch.zeros(len(hot)).scatter(0, hot.topk(round(kept * len(hot))).indices, 1.0)
        net[at] = _Masked(net[at], mask)
    with torch.no_grad():
        wanted = dense(x).softmax(1)
    minimise(lambda rows: cross_entropy(net(x[rows]), wanted[rows]), net.parameters(), len(x),
             steps=steps, seed=seed, rate=1e-3)  # fmt: skip
    return net.eval()


@torch.no_grad()
def _shuffled(net: Any, x: Tensor, label: Tensor, seed: int) -> float:
    """Return the accuracy if each digit uses the filters chosen for another digit."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    h = x
    for name, layer in net.named_children():
        if name in LAYERS:
            layer(h)  # chooses filters
            h = layer.conv(h) * layer.chosen[order][:, :, None, None]
        else:
            h = layer(h)
    return float((h.argmax(1) == label).double().mean())


@torch.no_grad()
def _time(net: nn.Module, x: Tensor) -> float:
    """Return the minimum processor time of three runs, in seconds."""
    times: list[float] = []
    for _ in range(3):
        began = time.process_time()
        net(x)
        times.append(time.process_time() - began)
    return min(times)
