"""Reconstruction of digits from the states after each layer.

A perceptron with narrowing layers. What another net sees in the decoded digits is asked too. Layers
of equal width, before and after training, say what training takes away.
"""

from typing import final

import torch
from torch import Tensor, nn

from sonde import Model
from sonde.train import InputDecoder
from sonde_studies._recipe_data import items_of, learned, mlp, shuffled_digits
from sonde_studies.arms import note_for, part
from sonde_studies.recipes.decode_states import decode_states
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, TINY = 700, 150


@final
class DecodeStatesStudy(Study):
    """Linear decoders after three layers of 64, 32 and 16 units."""

    name = "decode-states"
    title = "what can be read back from the states of each layer?"
    paper = "semiotics"
    fidelity = "linear decoders in closed form beside one with a hidden layer; one net for sounds"
    data = "digits: 700 to train on, 1,097 to decode"
    claims = (
        Claim("early", "After the first layer nine tenths of the pixels' variance are left.",
              "share that the decoder reads at the first layer, less 0.9"),
        Claim("fades", "Training widens the lead of early states over deep ones in what is left "
              "of the pixels.",
              "share read, first of three layers of 64 less last, trained less untrained",
              arms=("trained", "untrained")),
        Claim("class", "What is read from the last layer still shows its class to another net.",
              "accuracy of another net on decoded digits, less 0.9"),
        Claim("other data", "A decoder that learned on other rows, of other digits, reads states "
              "of digits nearly as well.",
              "share read of 0 to 4 at layer 1, learned on 5 to 9 less on 0 to 4, and 0.05",
              arms=("learned on 5 to 9", "learned on 0 to 4")),
        Claim("curved", "At the last layer a decoder with a hidden layer, of more parameters, "
              "reads more.",
              "share of the variance read, hidden layer less linear",
              arms=("hidden layer", "linear")),
        Claim("again", "Shown what was decoded, again and again, the net keeps its answer.",
              "share of rows with one answer in the second and the ninth round, less 0.9"),
        Claim("surer", "And becomes surer of it with each pass.",
              "mean largest probability, ninth round less second",
              arms=("ninth round", "second round")),
    )  # fmt: skip
    null = Claim("shuffled", "From the states of other rows no more is read than from noise.",
                 "share of variance read, other rows less noise of equal covariance")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train, run the recipe, and show decoded digits to another net."""
        tick("train")
        x, label = shuffled_digits(seed)
        n = TINY if tiny else FIT
        layers = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16)]
        net = learned(nn.Sequential(*layers, nn.ReLU(), nn.Linear(16, 10)), x[:n], label[:n], seed)
        judge = learned(mlp(64), x[:n], label[:n], seed + 77)
        tick("decode")
        items = items_of(x[FIT:], label[FIT:])
        found = decode_states(Model(net.module), items, sites="1,3,5", seed=seed, progress=False)
        share = [1 - float(row["missed"]) for row in found.rows]  # pyright: ignore
        deep, rows = net.module[:6], x[FIT:]  # pyright: ignore
        half = len(rows) // 2
        with torch.no_grad():
            states = deep(rows)  # pyright: ignore
            made = InputDecoder(64).solve(states[:half], rows[:half]).decode(states[half:])
            seen = (judge.module(made).argmax(1) == label[FIT + half :]).double().mean()
            said = InputDecoder(64).solve(states[:half], rows[:half])
            said = said.loop(deep, net.module, rows[half:], 8)[0].softmax(-1)  # pyright: ignore
            draw = torch.Generator().manual_seed(seed)
            mix = torch.randn(len(rows), len(rows), generator=draw) / len(rows) ** 0.5
            others, noise = (
                _share(InputDecoder(64).solve(s[:half], rows[:half]).decode(s[half:]), rows[half:])
                for s in (states.roll(1, 0), mix @ (states - states.mean(0)))
            )
            early, low = net.module[:2](rows), label[FIT:] < 5  # pyright: ignore
        _note_decoders(states[:half], low[:half])
        tick("equal widths")
        wide = _of_equal_widths(x[:n], label[:n], rows, seed)
        fades = {name: first - last for name, (first, last) in wide.items()}
        tick("decode by a hidden layer")
        curved = drawn(lambda: _read_once(InputDecoder(64, (64,)), states), seed)
        minimise(
            lambda r: curved(states[r], rows[r]), curved.parameters(), half,
            steps=TINY // 10 if tiny else 1_500, seed=seed,
        )  # fmt: skip
        first, held = torch.arange(len(rows)) < half, torch.arange(len(rows)) >= half
        own, other = (
            _share(InputDecoder(64).solve(early[first & kind], rows[first & kind]).decode(
                early[held & low]), rows[held & low]) for kind in (low, ~low)
        )  # fmt: skip
        return {
            "early": share[0] - 0.9,
            "fades": fades["trained"] - fades["untrained"],
            "class": float(seen) - 0.9,
            "other data": other - own + 0.05,
            "curved": _share(curved.decode(states[half:]), rows[half:])
            - _share(made, rows[half:]),
            "again": float((said[1].argmax(-1) == said[8].argmax(-1)).double().mean()) - 0.9,
            "surer": float((said[8].amax(-1) - said[1].amax(-1)).mean()),
            "shuffled": others - noise,
            "read | states of other rows": others,
            "read | noise": noise,
            "read of 0 to 4 | their own": own,
            "read of 0 to 4 | of 5 to 9": other,
            **{f"read | layer {i + 1}": v for i, v in enumerate(share)},
            **{f"read, equal widths | {name}, layer {i}": v
               for name, pair in wide.items() for i, v in zip((1, 3), pair, strict=True)},
            **{f"same answer | layer {i + 1}": float(row["same"])  # pyright: ignore
               for i, row in enumerate(found.rows)},
        }  # fmt: skip


def _note_decoders(states: Tensor, low: Tensor) -> None:
    """Note rows, parameters and passes of decoders that are compared, and that no step trains."""
    dim = states.shape[1] + 1
    for name, parameters in (("linear", dim * 64), ("hidden layer", (dim + 64) * 64 + 64)):
        note_for(name, rows=len(states), parameters=parameters)
    for name, kind in (("learned on 0 to 4", low), ("learned on 5 to 9", ~low)):
        note_for(name, rows=int(kind.sum()))
    for name, passes in (("ninth round", 9), ("second round", 2)):
        note_for(name, passes=passes)


def _of_equal_widths(
    x: Tensor, label: Tensor, rows: Tensor, seed: int
) -> dict[str, tuple[float, float]]:
    """Return what is read from the first and last layer of 64 units, before and after training."""
    even = drawn(_even, seed)
    untrained = _first_and_last(even, rows)
    note_for("untrained", updates=0)
    with part("trained"):
        learned(even, x, label, seed)
    return {"untrained": untrained, "trained": _first_and_last(even, rows)}


def _even() -> nn.Sequential:
    """Return a net with three hidden layers of 64 units."""
    layers = [part for _ in range(3) for part in (nn.Linear(64, 64), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(64, 10))


@torch.no_grad()
def _first_and_last(net: nn.Sequential, rows: Tensor) -> tuple[float, float]:
    """Return the fractions of held-out rows that are read at the first and the last layer."""
    half = len(rows) // 2
    early, late = net[:2](rows), net[:6](rows)
    made = (InputDecoder(64).solve(s[:half], rows[:half]).decode(s[half:]) for s in (early, late))
    first, last = (_share(one, rows[half:]) for one in made)
    return first, last


def _share(made: Tensor, rows: Tensor) -> float:
    """Return the fraction of the rows' variance that decoded rows explain."""
    return 1 - float((made.detach() - rows).square().sum() / (rows - rows.mean(0)).square().sum())


def _read_once(decoder: InputDecoder, states: Tensor) -> InputDecoder:
    """Return a decoder after a first pass that sets its lazy layers' widths."""
    decoder.decode(states[:1])
    return decoder
