"""Half of the labels are wrong: gains by nested dropout, rate reduction and propagation.

One net on digits, or two that choose rows for each other.
"""

from itertools import count
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sonde.train import NestedDropout, RateReduction
from sonde_studies._co_taught import WIDTH, NestedNet, taught
from sonde_studies._mixed_labels import RENEWED, cosines, mixed, spread
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.arms import note_again, note_for
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, STEPS, TINY, NOISE, NARROW = 1_000, 2_000, 60, 0.5, 16


@final
class NoisyLabelsStudy(Study):
    """A perceptron on digits, half of whose labels were replaced at random.

    Nested dropout of standard deviation 20 hardly trains the last of 128 units: claims on a cut
    net read the first 16.
    """

    name = "noisy-labels"
    title = "what helps a net whose labels are half wrong?"
    paper = "rippel2014nested"
    fidelity = "as in the papers, but propagation on pixels and cross entropy beside rate reduction"
    data = "digits: 1,000 to train on, half of their labels drawn anew, 797 clean ones to judge"
    claims = (
        Claim("nested", "Nested dropout (standard deviation 20) answers clean rows better.",
              "accuracy less that of plain training",
              arms=("nested", "plain")),
        Claim("narrow", "Its first 16 of 128 units answer better than a net trained with 16.",
              "accuracy, 16 units cut from nested dropout less 16 units from the start",
              arms=("nested", "narrow")),
        Claim("rate", "Rate reduction beside the cross entropy helps too.",
              "accuracy less that of plain training",
              arms=("rate", "plain")),
        Claim("spread", "Labels spread over neighbours are right more often than the given ones.",
              "share of right labels, spread less given",
              arms=("labels, spread", "labels, given")),
        Claim("taught", "Two nets that choose rows for each other answer clean rows better.",
              "accuracy of co-teaching, which trains twice the parameters, less that of plain "
              "training",
              arms=("co-teaching", "plain")),
        Claim("both", "Nested dropout in both nets, cut to 16 units, is worth two points more.",
              "accuracy of co-teaching, 16 units with nested dropout less all without", above=0.02,
              arms=("co-teaching, nested", "co-teaching")),
        Claim("prototypes",
              "Labels of the nearest prototype, in states trained with rate reduction, are right "
              "more often than given ones.",
              "share of right labels, nearest prototype less given",
              arms=("labels, prototypes", "labels, given")),
        Claim("joined", "Rate reduction on spread labels mixed with prototypes answers better.",
              "accuracy of rate reduction, on mixed labels less on the given",
              arms=("rate, mixed labels", "rate")),
        Claim("more", "Rate reduction on spread labels mixed with prototypes answers better than "
              "plain training on labels that are spread alone.",
              "accuracy, rate reduction on mixed labels less plain training on spread ones",
              arms=("rate, mixed labels", "spread labels")),
    )  # fmt: skip
    null = Claim("clean", "Without noise nested dropout gains nothing.",
                 "accuracy less that of plain",
                 arms=("clean, nested", "clean, plain"))  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train in each way on noisy labels, twice on clean ones, and correct the labels."""
        x, label = shuffled_digits(seed)
        draw = torch.Generator().manual_seed(seed)
        noisy = _noisy(label[:FIT], draw)
        steps, near = TINY if tiny else STEPS, spread(x[:FIT], noisy)

        def trained(
            arm: str, given: Tensor, std: float = 0, rate: float = 0, mix: bool = False,
            width: int = WIDTH,
        ) -> NestedNet:  # fmt: skip
            tick(arm)
            net, loss, step = drawn(lambda: NestedNet(width), seed), RateReduction(), count()
            net.nested = NestedDropout(std=std, per="row", seed=seed) if std else None

            def value(rows: Tensor) -> Tensor:
                nonlocal given
                if mix and next(step) % RENEWED == 0:
                    given = mixed(near, net.body(x[:FIT]).detach(), given)
                total = cross_entropy(net(x[rows]), given[rows])
                return total + rate * loss(net.body(x[rows]), given[rows]) if rate else total

            minimise(value, net.parameters(), FIT, steps=steps, seed=seed)
            return net

        def right(net: NestedNet, width: int = WIDTH) -> float:
            return net.accuracy(x[FIT:], label[FIT:], width)

        plain, nested = trained("plain", noisy), trained("nested", noisy, 20.0)
        joined = trained("rate, mixed labels", near.argmax(1), rate=0.1, mix=True)
        alone = trained("spread labels", near.argmax(1))
        rate, small = trained("rate", noisy, rate=0.1), trained("narrow", noisy, width=NARROW)
        pair = _pair(x, noisy, seed, steps, tick)
        clean = [trained("clean, plain", label[:FIT]), trained("clean, nested", label[:FIT], 20.0)]
        _note_labels()
        known = (noisy, near.argmax(1), cosines(rate.body(x[:FIT]), noisy).argmax(1))
        given, after, named = (float((y == label[:FIT]).double().mean()) for y in known)
        return {
            "nested": right(nested) - right(plain),
            "narrow": right(nested, NARROW) - right(small, NARROW),
            "rate": right(rate) - right(plain),
            "spread": after - given,
            "taught": right(pair[0]) - right(plain),
            "both": right(pair[1], NARROW) - right(pair[0]),
            "prototypes": named - given,
            "joined": right(joined) - right(rate),
            "more": right(joined) - right(alone),
            "clean": right(clean[1]) - right(clean[0]),
            "accuracy | co-teaching": right(pair[0]),
            "accuracy | co-teaching, nested": right(pair[1]),
            "accuracy | co-teaching, nested, 16 units": right(pair[1], NARROW),
            "right labels | prototypes": named,
            "accuracy | plain": right(plain),
            "accuracy | nested": right(nested),
            "accuracy | nested, 16 units": right(nested, NARROW),
            "accuracy | plain, width 16": right(small, NARROW),
            "accuracy | rate reduction": right(rate),
            "accuracy | rate reduction, mixed labels": right(joined),
            "accuracy | plain, spread labels": right(alone),
            "right labels | given": given,
            "right labels | spread": after,
        }


def _note_labels() -> None:
    """Note what labels were made from."""
    for name in ("labels, spread", "labels, given"):
        note_for(name, rows=FIT, updates=0)
    note_again("labels, prototypes", "rate")


def _noisy(label: Tensor, draw: torch.Generator) -> Tensor:
    """Return labels, some of them replaced by random ones."""
    wrong = torch.rand(len(label), generator=draw) < NOISE
    return torch.where(wrong, torch.randint(10, label.shape, generator=draw), label)


def _pair(x: Tensor, given: Tensor, seed: int, steps: int, tick: Tick) -> list[NestedNet]:
    """Return co-taught nets, without and with nested dropout."""
    found = list[NestedNet]()
    for arm, std in (("co-teaching", 0.0), ("co-teaching, nested", 20.0)):
        tick(arm)
        found.append(taught(x, given, seed, steps, NOISE, std))
    return found
