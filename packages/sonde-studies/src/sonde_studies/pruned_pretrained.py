"""Half of the weights of a pretrained language model, chosen by size or by size times input."""

from typing import final

from sonde.compress import PruneWeights
from sonde_studies._help_pages import BLOCKS, gains_of, language_model
from sonde_studies.study import Claim, Figures, Study, Tick

NATS = "nats a token"


@final
class PrunedPretrainedStudy(Study):
    """Two of every four weights of ten blocks are set to 0; pages that calibrated nothing judge."""

    name = "pruned-pretrained"
    title = "does Wanda's score beat size in a pretrained language model?"
    paper = "sun2024wanda"
    fidelity = "the paper's score and pattern; ten of thirty blocks, six texts calibrate, no tuning"
    data = "SmolLM2-135M-Instruct and help pages of Python; other pages in each seed"
    place = "smollm2"
    claims = (
        Claim("gain",
              "With two of four weights left, Wanda's score, which reads other texts, beats size.",
              f"{NATS} of held-out texts, size less Wanda",
              arms=("calibrated", "plain")),
    )  # fmt: skip
    null = Claim("own texts", "The gain is no larger on texts that calibrated.",
                 f"{NATS}, gain on texts that calibrated less gain on held-out texts")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Prune by both scores, and read texts with both models."""
        tick("pruning")
        plain, informed = (
            PruneWeights(pattern="2:4", score=score, layers=BLOCKS)
            for score in ("magnitude", "wanda")
        )
        return gains_of(language_model(self.place, tiny), seed, tiny, plain, informed)
