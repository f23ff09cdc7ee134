"""How much the later blocks of a pretrained language model do, against random weights."""

from typing import Any, final

import torch

from sonde import Model
from sonde.data import open_inputs
from sonde.measure import depth_use
from sonde_studies._help_pages import drawn_pages, language_model
from sonde_studies.arms import note_for
from sonde_studies.parts.lots import LOTS, share_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick

TEXTS, LENGTH = 1, 250


@final
class DepthPretrainedStudy(Study):
    """Contributions of blocks, and what skipping each changes, before and after training.

    Contributions fall with depth at random weights too, so the model is compared with a copy whose
    weights the seed draws.
    """

    name = "depth-pretrained"
    title = "do the later blocks of a pretrained language model do less than random ones?"
    paper = "csordas2025depth"
    fidelity = "contributions and skips as published, means in place of maxima; thirty blocks"
    data = "SmolLM2-135M-Instruct and help pages of Python; other pages in each seed"
    place = "smollm2"
    seconds = 30.0
    claims = (
        Claim("second half", "The second half of the blocks contributes less than at random "
              "weights.", "share of all contributions, random less trained",
              arms=("trained", "random")),
        Claim("less than the first", "It contributes less than the first half, of which the first "
              "block is not counted.", "mean contribution of a block, first half less second",
              arms=("second half", "first half")),
        Claim("skips fall", "Skipping a late block changes later ones less, compared with an early "
              "one, than at random weights.",
              "mean block number weighted by effects of skips, random less trained",
              arms=("trained", "random")),
        Claim("answer", "Skipping one of the first half changes the answer more than skipping one "
              "of the second.", "difference of mean changes of probabilities, trained",
              arms=("first half", "second half")),
        Claim("answer, trained", "It does so more than at random weights.",
              "difference of mean changes of probabilities, trained less random",
              arms=("trained", "random")),
    )  # fmt: skip
    null = Claim("by lot", f"Of {LOTS} random halves of the blocks neither contributes more.",
                 "share of all contributions, trained, less 0.5")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Measure the model and a copy with random weights on the same pages."""
        model = language_model(self.place, tiny)
        texts = drawn_pages(seed, 1 if tiny else TEXTS, LENGTH)
        tick("random weights")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config: Any = model.config
            new = type(model.module)(config).eval()
        found: dict[str, Any] = {}
        for name, module in {"random": new, "trained": model.module}.items():
            tick(name)
            inputs = open_inputs(Model(module, model.processor, task="causal"), texts)
            found[name] = depth_use(module, inputs.batches(0, len(texts)), leave_out=1)
        weights = sum(p.numel() for p in model.module.parameters())
        for name in ("random", "trained", "first half", "second half"):
            note_for(name, rows=len(texts), parameters=weights)
        random, trained = found["random"], found["trained"]
        added = trained.contribution
        half = len(added) // 2
        answer = {
            name: float(one.answer_change[:half].mean() - one.answer_change[half:].mean())
            for name, one in found.items()
        }
        return {
            "second half": float(random) - float(trained),
            "less than the first": float(added[1:half].mean() - added[half:].mean()),
            "skips fall": random.depth - trained.depth,
            "answer": answer["trained"],
            "answer, trained": answer["trained"] - answer["random"],
            "by lot": share_by_lot(added, half, seed) - 0.5,
            **{f"second half | {name}": float(one) for name, one in found.items()},
            **{f"depth of effects | {name}": one.depth for name, one in found.items()},
            **{f"block {i + 1:2d} | {name}": float(x)
               for name, one in found.items() for i, x in enumerate(one.contribution)},
        }  # fmt: skip
