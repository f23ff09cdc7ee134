"""Half of the weights of a pretrained language model, chosen by size or by size times input."""

from typing import final

from sonde.compress import PruneWeights
from sonde.data import open_inputs
from sonde_studies._help_pages import drawn_pages, language_model, mean_loss
from sonde_studies.study import Claim, Figures, Study, Tick

CALIBRATED, JUDGED, LENGTH = 6, 2, 300
BLOCKS = ("model.layers.[0-9].*",)
"""Layers that are pruned: those of the first ten blocks, which takes seconds."""
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
        Claim("gain", "With two of four weights left, Wanda's score beats size.",
              f"{NATS} of held-out texts, size less Wanda"),
    )  # fmt: skip
    null = Claim("own texts", "The gain is no larger on texts that calibrated.",
                 f"{NATS}, gain on texts that calibrated less gain on held-out texts")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Prune by both scores, and read texts with both models."""
        model, n = language_model(self.place, tiny), 1 if tiny else JUDGED
        n_calibrated = 2 if tiny else CALIBRATED
        texts = drawn_pages(seed, n_calibrated + n, LENGTH)
        own, held = texts[:n], texts[n_calibrated:]
        loss: dict[str, tuple[float, float]] = {}
        for score in ("magnitude", "wanda"):
            tick(score)
            rule = PruneWeights(pattern="2:4", score=score, layers=BLOCKS)
            data = open_inputs(model, texts[:n_calibrated])
            new = rule.plan(model, {name: data for name in rule.reads()}).fold(model)
            loss[score] = mean_loss(model, new, own), mean_loss(model, new, held)
        gain = [a - b for a, b in zip(loss["magnitude"], loss["wanda"], strict=True)]
        return {
            "gain": gain[1],
            "own texts": gain[0] - gain[1],
            "loss, unpruned": mean_loss(model, model.module, held),
            **{f"loss, {score}": held_loss for score, (_, held_loss) in loss.items()},
        }
