"""One training run for all mixtures of bit widths, against one run for each width."""

import math
from typing import Any, final

import torch

from sonde.compress import GPTQ, OnceForAllBits, fidelity, layer_grams
from sonde.core import Model
from sonde.data import open_inputs
from sonde.weights import RewritePlan
from sonde_studies._digits import train
from sonde_studies._recipe_data import mlp, shuffled_digits
from sonde_studies._shrunk import Shrunk
from sonde_studies.arms import note_again, note_for
from sonde_studies.study import Claim, Figures, Study, Tick

WIDTHS, EPOCHS, RANK, RATE, GROUP, ROWS = (2, 3, 4), 24, 4, 2e-3, 32, 1_000


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

        def trained(widths: tuple[int, ...], epochs: int) -> OnceForAllBits:
            return OnceForAllBits.train(
                model, data, widths, group=GROUP, rank=RANK, rate=RATE, epochs=epochs, seed=seed,
                progress=False,
            )  # fmt: skip

        def kl_of(plan: RewritePlan) -> float:
            return fidelity(model, plan.fold(model), fresh).kl

        def divergence(bits: Any, corrections: Any) -> float:
            return kl_of(OnceForAllBits(bits, GROUP, corrections).plan(model))

        tick("once")
        once = trained(WIDTHS, epochs)
        tick("each")
        each = {b: trained((b,), epochs // len(WIDTHS)) for b in WIDTHS}
        note_for("GPTQ", updates=0)
        note_again("mixture", "once")
        grams = {"calibration": layer_grams(model, data, progress=False)}
        kl: dict[str, float] = {}
        for b in WIDTHS:
            kl[f"rounding | {b} bits"] = divergence(b, {})
            kl[f"GPTQ | {b} bits"] = kl_of(GPTQ(b, GROUP).plan(model, grams))
            kl[f"once | {b} bits"] = divergence(b, once.corrections)
            kl[f"each | {b} bits"] = divergence(b, each[b].corrections)
        parts = {
            name: {b: each[b].corrections[name][b] for b in WIDTHS} for name in once.corrections
        }
        names, draw = list(once.corrections), torch.Generator().manual_seed(seed)
        gains: list[float] = []
        for _ in range(10):
            drawn = torch.randint(2, 5, (len(names),), generator=draw).tolist()
            bits = dict(zip(names, drawn, strict=True))
            gains.append(math.log(divergence(bits, parts) / divergence(bits, once.corrections)))
        found: Any = once.within(model, data, 3.0).bits

        def gain(worse: str, better: str, b: int) -> float:
            return math.log(kl[f"{worse} | {b} bits"] / kl[f"{better} | {b} bits"])

        tick("eight bits")
        return {
            "gptq": min(gain("GPTQ", "once", b) for b in WIDTHS),
            "two bits": gain("GPTQ", "once", 2),
            "as each": math.log(1.25) - sum(gain("once", "each", b) for b in WIDTHS) / len(WIDTHS),
            "mixtures": sum(gains) / len(gains),
            "search": math.log(kl["once | 3 bits"] / divergence(found, once.corrections)),
            "eight bits": Shrunk(model, x[:ROWS], fresh, (x[ROWS:], label[ROWS:])).dearer(
                OnceForAllBits(8, GROUP, {})
            ),
            **{f"divergence of {name}": v for name, v in kl.items()},
        }
