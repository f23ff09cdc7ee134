"""Nets on digits that studies compress, and the divergence of the smaller nets' answers."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import sonde
from sonde.compress import fidelity, layer_grams
from sonde.core import Inputs, Model
from sonde.data import open_inputs
from sonde.weights import Examples, Rewrite, RewritePlan
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.arms import note, trained_once
from sonde_studies.worlds.learning import drawn, learn_labels

TRAIN, STEPS, ROWS, TINY = 1_000, 500, 300, 40


@dataclass(frozen=True, eq=False)
class Shrunk:
    """A net, calibration rows, and test rows.

    Parameters
    ----------
    model : Model
    rows : Tensor
    fresh : Inputs
    judged : pair of Tensor, optional
        Test rows and their labels.
    """

    model: Model
    rows: Tensor
    fresh: Inputs
    judged: tuple[Tensor, Tensor] | None = None

    def planned(self, rule: Rewrite, rows: Tensor | None = None, net: Any = None) -> RewritePlan:
        """Return the plan of a rewrite for this net or another net.

        Examples are given to rewrites that need them: plain rounding reads none.
        """
        live = self._model(self.model.module if net is None else net)
        note(rows=0)
        needs = list(rule.reads().values())
        if not needs or (isinstance(needs[0], Examples) and needs[0].optional):
            return rule.plan(live)
        read = self.rows if rows is None else rows
        note(rows=len(read))
        given: Any = open_inputs(live, read)
        if getattr(needs[0], "summed", None) is not None:
            layers: Any = getattr(rule, "layers", None)
            given = layer_grams(live, given, layers=layers, progress=False)
        return rule.plan(live, {"calibration": given})

    def divergence(self, *rules: Rewrite, rows: Tensor | None = None, net: Any = None) -> float:
        """Return the mean divergence of the answers after some rewrites, in nats."""
        own = new = self.model.module if net is None else net
        for rule in rules:
            new = self.planned(rule, rows, new).fold(new)
        return fidelity(self._model(own), new, self.fresh).kl

    def changed(self, rule: Rewrite) -> float:
        """Return the share of the answers that a rewrite changes."""
        new = self.planned(rule).fold(self.model.module)
        return fidelity(self.model, new, self.fresh).changed

    def _model(self, module: Any) -> Model:
        return Model(module, config=self.model.config, task=self.model.task)

    @torch.no_grad()
    def loss(self, net: Any) -> float:
        """Return the mean loss of the test rows' labels, in nats."""
        assert self.judged is not None
        x, label = self.judged
        return -float(net(x).double().log_softmax(1).gather(1, label[:, None]).mean())

    def dearer(self, rule: Rewrite) -> float:
        """Return how much larger that loss is after a rewrite."""
        own: Any = self.model.module
        return self.loss(self.planned(rule).fold(own)) - self.loss(own)


def log_ratio(a: float, b: float) -> float:
    """Return the logarithm of ``a / b``."""
    return math.log(a / b)


def _wide() -> nn.Sequential:
    sizes = [(64, 256), (256, 256), (256, 256)]
    hidden = [part for a, b in sizes for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(256, 10))


def _convolutional() -> nn.Sequential:
    maps = [(1, 16, 1), (16, 32, 1), (32, 32, 2)]
    hidden: list[nn.Module] = []
    for a, b, stride in maps:
        hidden += [nn.Conv2d(a, b, 3, stride, 1), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), *hidden, nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(128, 10),
    )  # fmt: skip


@trained_once
def wide_net(seed: int, tiny: bool) -> Shrunk:
    """Return a dense net with three hidden layers of 256 units; two studies use it."""
    return _learned(_wide, seed, tiny)


@trained_once
def conv_net(seed: int, tiny: bool) -> Shrunk:
    """Return a net with three convolutions and batch norm."""
    return _learned(_convolutional, seed, tiny)


def _learned(make: Any, seed: int, tiny: bool) -> Shrunk:
    x, label = shuffled_digits(seed)
    net: Any = drawn(make, seed)
    learn_labels(net, x[:TRAIN], label[:TRAIN], steps=30 if tiny else STEPS, seed=seed)
    model = Model(net)
    fresh = x[TRAIN:], label[TRAIN:]
    return Shrunk(model, x[: TINY if tiny else ROWS], open_inputs(model, fresh[0]), fresh)


def shipped_net(seed: int, tiny: bool) -> Shrunk:
    """Return the shipped digit transformer, with calibration rows chosen by a seed."""
    model: Any = sonde.load("sonde:digits", device="cpu")
    parts: list[Tensor] = []
    for name in ("train", "test"):
        inputs = open_inputs(model, f"sonde:digits/{name}")
        batches = inputs.batches(0, len(inputs))
        parts.append(torch.cat([batch.kwargs["pixel_values"] for batch in batches]))
    ours, fresh = parts
    order = torch.randperm(len(ours), generator=torch.Generator().manual_seed(seed))
    rows = ours[order[: TINY if tiny else ROWS]]
    return Shrunk(model, rows, open_inputs(model, fresh[:TINY] if tiny else fresh))
