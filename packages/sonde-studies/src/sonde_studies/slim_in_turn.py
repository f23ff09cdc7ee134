"""Pruning of a transformer's stream and inner parts in turn, against both at once."""

from dataclasses import replace
from typing import final

from sonde.compress import AlternateSlim, PruneChannels, SliceWidth
from sonde_studies._shrunk import log_ratio, shipped_net
from sonde_studies.arms import note, note_again, part
from sonde_studies.study import Claim, Figures, Study, Tick

EPOCHS, RATE = 8, 2e-3


@final
class SlimInTurnStudy(Study):
    """The shipped digit model without half or a quarter of its stream, heads and neurons."""

    name = "slim-in-turn"
    title = "is it better to slim a transformer in two steps, each on states that keep their shape?"
    paper = "chen2024slimsam"
    fidelity = (
        "answers by divergence; a model of four blocks in place of one that segments images; eight "
        "epochs a step, after which the divergence still falls"
    )
    data = "sonde:digits; 300 of its training images to train on, its test images to judge"
    claims = (
        Claim("in turn", "With half left out, two steps diverge less than one of as many epochs.",
              "logarithm of the divergence of one step over that of two, of which the first "
              "trains 1.9 times the parameters",
              arms=("two steps, 50%", "one step, 50%")),
        Claim("quarter", "With a quarter left out they do.",
              "logarithm of the divergence of one step over that of two, of which the first "
              "trains 1.3 times the parameters",
              arms=("two steps, 25%", "one step, 25%")),
        Claim("training", "Training lowers the divergence at half to a tenth.",
              "logarithm of the divergence without training over that with it, less log 10",
              arms=("two steps, 50%, again", "not trained")),
        Claim("fitted",
              "At half it diverges less than fits of least squares, which are not trained.",
              "logarithm of the divergence of sliced streams and pruned channels over its own",
              arms=("two steps, 50%", "fitted")),
        Claim("gradient", "Chosen by a gradient towards disturbed outputs, half left out diverges "
              "less than by the gradient of the likeliest answers.",
              "logarithm of the divergence by answers over that by disturbed outputs",
              arms=("by disturbed outputs", "by answers")),
        Claim("sizes", "It diverges less than by sizes of weights.",
              "logarithm of the divergence by sizes of weights over that by disturbed outputs",
              arms=("by disturbed outputs", "by size")),
    )  # fmt: skip
    null = Claim("none out", "Where nothing is left out, training changes no answer.",
                 "divergence in nats")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Prune in both ways at two sizes."""
        found, epochs = shipped_net(seed, tiny), 1 if tiny else EPOCHS
        kl: dict[str, float] = {}
        for share in (0.5, 0.25):
            rule = AlternateSlim(share, epochs=epochs, rate=RATE, seed=2 * seed)
            for name, one in (("two steps", rule), ("one step", replace(rule, alternate=False))):
                tick(f"{name}, {share:.0%}")
                kl[f"{name} | {share:.0%}"] = found.divergence(one)
        tick("two steps, 50%, again")
        half = AlternateSlim(0.5, epochs=epochs, rate=RATE, seed=2 * seed + 1)
        again = found.divergence(half)
        with part("not trained"):
            note(updates=0)
            bare = found.divergence(replace(half, epochs=0))
        with part("fitted"):
            note(updates=0)
            fitted = found.divergence(SliceWidth(0.5, half=False), PruneChannels(0.5, half=False))
        by = criteria(seed, tiny, kl["two steps | 50%"])
        note_again("by disturbed outputs", "two steps, 50%")
        return {
            "in turn": log_ratio(kl["one step | 50%"], kl["two steps | 50%"]),
            "quarter": log_ratio(kl["one step | 25%"], kl["two steps | 25%"]),
            "training": log_ratio(bare, 10 * again),
            "fitted": log_ratio(fitted, kl["two steps | 50%"]),
            **by,
            "none out": found.divergence(replace(half, remove=0.0)),
            "divergence, not trained | 50%": bare,
            "divergence, fitted | 50%": fitted,
            **{f"divergence, {name}": value for name, value in kl.items()},
        }


def criteria(seed: int, tiny: bool, disturbed: float | None = None) -> dict[str, float]:
    """Return what half left out by two other criteria costs, against that of disturbed outputs."""
    found, epochs = shipped_net(seed, tiny), 1 if tiny else EPOCHS
    rule, by = AlternateSlim(0.5, epochs, RATE, seed=2 * seed), dict[str, float]()
    for score in ("answers", "size"):
        with part(f"by {score}"):
            by[score] = found.divergence(replace(rule, score=score))
    if disturbed is None:
        with part("by disturbed outputs"):
            disturbed = found.divergence(rule)
    return {
        "gradient": log_ratio(by["answers"], disturbed),
        "sizes": log_ratio(by["size"], disturbed),
        **{f"divergence, by {score} | 50%": value for score, value in by.items()},
    }
