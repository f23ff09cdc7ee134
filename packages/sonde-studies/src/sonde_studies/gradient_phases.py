"""Test whether gradients turn from signal to noise when a layer begins to compress."""

import math
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from sonde.measure import gradient_signal_to_noise, information_plane
from sonde_studies._bit_rule import AT, PLAIN, ROWS, STEPS, bit_rule, checkpoints
from sonde_studies._layers import layers_of
from sonde_studies.arms import note_for
from sonde_studies.information_plane import FORGOTTEN, FORMS
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import accuracy

BATCHES, BEFORE, FORGETS = 32, 10 * PLAIN, 0.1


@final
class GradientPhasesStudy(Study):
    """Tanh nets trained by stochastic gradient descent: gradients of the last hidden layer.

    The turn is the first checkpoint at which the gradients of batches scatter more than they agree;
    the maximum is that of the layer's information about the input, on one half of the inputs; the
    other half says how much of it is gone in the end.
    """

    name = "gradient-phases"
    title = "does the gradient turn from signal to noise where a layer begins to forget?"
    paper = "shwartzziv2017opening"
    fidelity = (
        "the task's size and layers as published, another rule; batches of "
        "256 drawn anew at each checkpoint, where the original takes those of an epoch"
    )
    data = "synthetic: all 4,096 inputs of 12 bits, label a threshold of a quadratic form"
    claims = (
        Claim(
            "signal first",
            "Before training, batches agree on more of the gradient than they scatter.",
            "signal-to-noise of gradients, in doublings",
        ),
        Claim(
            "noise last",
            "In the end they scatter more than they agree.",
            "noise-to-signal of gradients, in doublings",
        ),
        Claim(
            "forgets",
            "Premise: by bins from -1 to 1 the last layer ends 0.1 bits below its largest.",
            FORGOTTEN,
            above=FORGETS,
            arms=("after all updates", "checkpoint of most information"),
        ),
        Claim(
            "at once",
            "The turn and the maximum of the information lie within a factor of two of steps.",
            "doublings to spare",
            premise="forgets",
        ),
    )
    null = Claim(
        "own answers",
        "On labels that the net draws from its own answers batches agree on nothing.",
        "square of signal over noise, over what chance adds to it, less 1, before training",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a net, and compare gradients of batches with the layer's information."""
        x, label = bit_rule(seed)
        tick("training")
        nets = checkpoints(x, label, nn.Tanh, 0.0, seed, 40 if tiny else STEPS, plain=True)
        tick("gradients")
        draw = torch.Generator().manual_seed(1000 + seed)
        rows = [_gradients(net, x, label, draw) for net in nets]
        ratio = [_doublings(each) for each in rows]
        bits, other = (
            [float(information_plane(layers_of(net, half)[-1], **FORMS["bins"]).bits())
             for net in nets]
            for half in (x[i :: 8 if tiny else 2] for i in (0, 1))
        )  # fmt: skip
        most = other.index(max(other))
        at = [PLAIN * step for step in (*AT[: len(nets) - 1], STEPS)]
        for name, step in (
            ("checkpoint of most information", at[most]),
            ("after all updates", at[-1]),
        ):
            note_for(name, updates=step, rows=len(x))
        turned = [step for step, value in zip(at, ratio, strict=True) if value < 0]
        turn, peak = (turned or at[-1:])[0], at[most]
        return {
            "signal first": ratio[0],
            "noise last": -ratio[-1],
            "forgets": bits[most] - bits[-1],
            "at once": 1 - abs(math.log2((turn + BEFORE) / (peak + BEFORE))),
            "own answers": beyond_chance(nets[0], x, None, seed),
            "accuracy": accuracy(nets[-1], x, label),
            "step of the turn": float(turn),
            "step of the most information": float(peak),
            **{
                f"signal over noise, doublings | step {s}": r
                for s, r in zip(at, ratio, strict=True)
            },
        }


def _gradients(
    net: nn.Sequential, x: Tensor, label: Tensor | None, draw: torch.Generator
) -> Tensor:
    """Return the gradient of the last hidden layer's weights on each drawn batch, (batch, weight).

    Without labels, each batch draws its labels from the probabilities that the net gives them.
    """
    hidden = net[-2]
    assert isinstance(hidden, nn.Sequential)
    weight, found = hidden[0].get_parameter("weight"), list[Tensor]()
    with torch.enable_grad():
        for _ in range(BATCHES):
            rows = torch.randint(len(x), (ROWS,), generator=draw)
            said = net(x[rows])
            if label is None:
                probable = said.detach().softmax(1)
                truth = torch.multinomial(probable, 1, generator=draw)[:, 0]
            else:
                truth = label[rows]
            loss = functional.cross_entropy(said, truth)
            found.append(torch.autograd.grad(loss, weight)[0].flatten())
    return torch.stack(found)


def beyond_chance(net: nn.Sequential, x: Tensor, label: Tensor | None, seed: int) -> float:
    """Return the square of signal over noise, over what chance adds to it, less 1."""
    found = gradient_signal_to_noise(_gradients(net, x, label, torch.Generator().manual_seed(seed)))
    return BATCHES * found.corrected_square


def _doublings(gradients: Tensor) -> float:
    return math.log2(float(gradient_signal_to_noise(gradients)))
