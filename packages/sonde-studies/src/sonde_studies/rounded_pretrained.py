"""A pretrained language model at three bits: rounded to the nearest value, or by GPTQ."""

from typing import final

from sonde.compress import GPTQ, RTN
from sonde_studies._help_pages import BLOCKS, gains_of, language_model
from sonde_studies.study import Claim, Figures, Study, Tick

NATS = "nats a token"


@final
class RoundedPretrainedStudy(Study):
    """Ten blocks are rounded to three bits; pages that calibrated nothing judge."""

    name = "rounded-pretrained"
    title = "does GPTQ beat rounding at three bits in a pretrained language model?"
    paper = "frantar2023gptq"
    fidelity = "ten of thirty blocks, six texts calibrate where the paper takes 128 of 2,048 tokens"
    data = "SmolLM2-135M-Instruct and help pages of Python; other pages in each seed"
    place = "smollm2"
    claims = (
        Claim("gain",
              "At three bits GPTQ, which reads other texts, beats rounding to the nearest value.",
              f"{NATS} of held-out texts, rounding less GPTQ",
              arms=("calibrated", "plain")),
    )  # fmt: skip
    null = Claim("own texts", "The gain is no larger on texts that calibrated.",
                 f"{NATS}, gain on texts that calibrated less gain on held-out texts")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Round in both ways, and read texts with both models."""
        tick("rounding")
        plain, informed = RTN(bits=3, layers=BLOCKS), GPTQ(bits=3, layers=BLOCKS)
        return gains_of(language_model(self.place, tiny), seed, tiny, plain, informed)
