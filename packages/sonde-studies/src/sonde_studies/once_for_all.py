"""One training run for all mixtures of bit widths, against one run for each width."""

import math
from functools import partial
from typing import Any, final

import torch

from sonde.compress import GPTQ, OnceForAllBits, fidelity, layer_grams
from sonde.core import Model
from sonde.data import open_inputs
from sonde.weights import RewritePlan
from sonde_studies._digits import train
from sonde_studies._recipe_data import mlp, shuffled_digits
from sonde_studies._shrunk import Shrunk
from sonde_studies.arms import note, note_again, note_for
from sonde_studies.study import Claim, Figures, Study, Tick

WIDTHS, EPOCHS, RANK, RATE, GROUP, ROWS = (2, 3, 4), 24, 4, 2e-3, 32, 1_000

OTHERS: dict[str, Any] = {
    "scheduled": {"sampling": "schedule"},
    "layer by layer": {"sampling": "layers"},
    "shared": {"is_shared": True},
}
"""Options of trainings that differ from ``once`` in one thing each."""


@final
class OnceForAllStudy(Study):
    """Compress nets on digits to two, three and four bits by four methods, and compare answers.

    The methods: plain rounding, GPTQ, one training for all widths, and one training for each.
    """

    name = "once-for-all"
    title = "does one training serve every width as well as a training for each?"
    paper = "yi2024onceforall"
    fidelity = (
        "corrections are rounded with the weights; divergence from the net in place of a task"
    )
    data = "digits: nets of three layers, 1,000 rows to learn from, 797 to judge"
    claims = (
        Claim("gptq",
              "At every width it diverges less on fresh rows than GPTQ, which is not trained but "
              "fits layer by layer to the rows that it learns from.",
              "logarithm of the ratio of divergences, the least of three widths",
              arms=("once", "GPTQ")),
        Claim("two bits", "At two bits it does.",
              "logarithm of the ratio of divergences; GPTQ is not trained",
              arms=("once", "GPTQ")),
        Claim("as each", "At equal steps it diverges at most a quarter more than one for each.",
              "log 1.25 less the logarithm of the ratio, mean over widths",
              arms=("once", "each")),
        Claim("mixtures", "Mixtures of widths drawn afterwards diverge less than with corrections "
              "of a training for each width.",
              "logarithm of the ratio of divergences, mean over ten mixtures",
              arms=("once", "each")),
        Claim("search", "The best mixture within three bits diverges less than three bits each.",
              "logarithm of the ratio of divergences",
              arms=("mixture", "once")),
        Claim("scheduled", "At equal steps, corrections trained on a schedule of mean widths "
              "diverge less than if each layer's width is drawn by itself.",
              "logarithm of the ratio of divergences, mean over widths",
              arms=("scheduled", "layer by layer")),
        Claim("over even", "They diverge less than if all mean widths are drawn equally often.",
              "logarithm of the ratio of divergences, mean over widths",
              arms=("scheduled", "once")),
        Claim("decoupled", "A correction for each width, with three times the parameters, diverges "
              "less than a single one for all widths.",
              "logarithm of the ratio of divergences, mean over widths",
              arms=("once", "shared")),
    )  # fmt: skip
    null = Claim("eight bits", "Rounded by the same code to eight bits, it costs nothing.",
                 "nats of the label, test rows")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train once and for each width, and compare answers on fresh rows."""
        x, label = shuffled_digits(seed)
        net = mlp(64)
        train(net, x[:ROWS], label[:ROWS], seed, 200, 3e-3)
        model = Model(net)
        data: Any = open_inputs(model, x[: 100 if tiny else ROWS])
        fresh = open_inputs(model, x[ROWS:])
        epochs = 3 if tiny else EPOCHS

        trained = partial(_trained, model, data, seed)

        def kl_of(plan: RewritePlan) -> float:
            return fidelity(model, plan.fold(model), fresh).kl

        def divergence(bits: Any, corrections: Any) -> float:
            return kl_of(OnceForAllBits(bits, GROUP, corrections).plan(model))

        tick("once")
        once = trained(WIDTHS, epochs)
        tick("each")
        each = {b: trained((b,), epochs // len(WIDTHS)) for b in WIDTHS}
        note(parameters=sum(_n_numbers(rule) for rule in each.values()))
        others = dict[str, OnceForAllBits]()
        for name, options in OTHERS.items():
            tick(name)
            others[name] = trained(WIDTHS, epochs, **options)
        note_for("GPTQ", updates=0)
        note_again("mixture", "once")
        grams = {"calibration": layer_grams(model, data, progress=False)}
        kl: dict[str, float] = {}
        for b in WIDTHS:
            kl[f"rounding | {b} bits"] = divergence(b, {})
            kl[f"GPTQ | {b} bits"] = kl_of(GPTQ(b, GROUP).plan(model, grams))
            for name, rule in {"once": once, **others}.items():
                kl[f"{name} | {b} bits"] = divergence(b, rule.corrections)
            kl[f"each | {b} bits"] = divergence(b, each[b].corrections)
        parts = {
            name: {b: each[b].corrections[name][b] for b in WIDTHS} for name in once.corrections
        }
        gains = [
            math.log(divergence(bits, parts) / divergence(bits, once.corrections))
            for bits in _mixtures(list(once.corrections), seed)
        ]
        found: Any = once.within(model, data, 3.0).bits

        gain = partial(_mean_gain, kl)
        tick("eight bits")
        return {
            "gptq": min(gain("GPTQ", "once", (b,)) for b in WIDTHS),
            "two bits": gain("GPTQ", "once", (2,)),
            "as each": math.log(1.25) - gain("once", "each"),
            "mixtures": sum(gains) / len(gains),
            "search": math.log(kl["once | 3 bits"] / divergence(found, once.corrections)),
            "scheduled": gain("layer by layer", "scheduled"),
            "over even": gain("once", "scheduled"),
            "decoupled": gain("shared", "once"),
            "eight bits": Shrunk(model, x[:ROWS], fresh, (x[ROWS:], label[ROWS:])).dearer(
                OnceForAllBits(8, GROUP, {})
            ),
            **{f"divergence of {name}": v for name, v in kl.items()},
        }


def _n_numbers(rule: OnceForAllBits) -> int:
    """Return the numbers of all corrections; a shared correction counts once."""
    factors = (pair for widths in rule.corrections.values() for pair in widths.values())
    return sum(x.numel() for x in {x.data_ptr(): x for pair in factors for x in pair}.values())


def _trained(
    model: Model, data: Any, seed: int, widths: tuple[int, ...], epochs: int, **options: Any
) -> OnceForAllBits:
    rule = OnceForAllBits.train(
        model, data, widths, group=GROUP, rank=RANK, rate=RATE, epochs=epochs, seed=seed,
        progress=False, **options,
    )  # fmt: skip
    note(parameters=_n_numbers(rule))
    return rule


def _mixtures(names: list[str], seed: int) -> list[dict[str, int]]:
    """Return ten mixtures of widths, each layer's drawn by itself."""
    draw = torch.Generator().manual_seed(seed)
    drawn = (torch.randint(2, 5, (len(names),), generator=draw).tolist() for _ in range(10))
    return [dict(zip(names, bits, strict=True)) for bits in drawn]


def _mean_gain(
    kl: dict[str, float], worse: str, better: str, widths: tuple[int, ...] = WIDTHS
) -> float:
    """Return the mean logarithm of the ratio of two ways' divergences at some widths."""
    logs = (math.log(kl[f"{worse} | {b} bits"] / kl[f"{better} | {b} bits"]) for b in widths)
    return sum(logs) / len(widths)
