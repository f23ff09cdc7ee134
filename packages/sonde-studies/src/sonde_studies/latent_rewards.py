"""A latent step among words that is trained by rewards for right answers.

The task is that of ``latent-steps``: the answer is the cell two arrows on. A decoder half learns,
by imitation, to name the cell between and then the answer. It goes on by rewards: the cell between
is a sampled word, alone or mixed with the mean of all words' embeddings by a gate. If the decoder
answers equally well without the mixture, rewards taught it to choose words, not to use the step.
"""

from copy import deepcopy
from typing import final

import torch
from torch import Tensor, nn

from sonde.layers import LatentLoop
from sonde_studies._arrows import CELLS, FIT, arrows, decoder, imitate
from sonde_studies._step_rewards import learn_by_reward, looped, word_alone
from sonde_studies.arms import note_again, note_for
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn

START, ENOUGH, UPDATES, TINY, LOT_STEPS = 1500, 0.4, 120, 2, 300
ORDER = 10_000
"""Added to the seed of questions and samples."""


@final
class LatentRewardsStudy(Study):
    """A gated step and a word in its place, each trained by group policy gradient."""

    name = "latent-rewards"
    title = "do rewards alone teach a narrow decoder to use a gated latent step?"
    paper = "yue2025hrpo"
    fidelity = (
        "a decoder of one block, one thought; gate, rates and penalty in published proportions"
    )
    data = "simulated: eight cells with an arrow each"
    claims = (
        Claim("learns", "Rewards make a decoder with a gated step answer correctly more often.",
              "accuracy, gated after rewards less before",
              arms=("rewards", "rewards, before")),
        Claim("lot", "They do so because they are earned: dealt by lot they teach less.",
              "accuracy, gated, rewards earned less dealt by lot",
              arms=("rewards", "rewards by lot")),
        Claim("word", "The gated step learns as much as a word alone, to five points.",
              "0.05 less accuracy of the word over the gated step, whose gate adds a tenth of the"
              " parameters",
              premise="used",
              arms=("rewards", "rewards, word alone")),
        Claim("used", "It comes to use the mixture: without it it is right less often.",
              "accuracy, gated by rewards less the same without the mixture",
              arms=("rewards", "rewards, without the mixture")),
    )  # fmt: skip
    null = Claim(
        "by lot",
        "A decoder that imitates answers by lot gives none of other questions.",
        "accuracy of the word alone, less one in eight",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Half train a decoder, and go on in each way."""
        ids, way = arrows(2, seed)
        tick("start")
        net = drawn(lambda: _loop(decoder()), seed)
        imitate(
            net.model, ids, way, TINY if tiny else START,
            lambda: _accuracy(net, ids, way[:, 1], False) >= ENOUGH, seed,
        )  # fmt: skip
        start = _accuracy(net, ids, way[:, 1], True)
        found = {"start": start, "start, word alone": _accuracy(net, ids, way[:, 1], False)}
        used = 0.0
        for arm, gated, earned in (
            ("rewards", True, True),
            ("rewards by lot", True, False),
            ("rewards, word alone", False, True),
        ):
            tick(arm)
            note_for(f"{arm}, before", updates=0)
            taught = deepcopy(net)
            learn_by_reward(
                taught, looped if gated else word_alone, ids[:FIT],
                CELLS * CELLS + way[:FIT, 1],
                updates=TINY if tiny else UPDATES, seed=seed + ORDER, earned=earned,
            )  # fmt: skip
            found[arm] = _accuracy(taught, ids, way[:, 1], gated)
            if arm == "rewards":
                note_again("rewards, without the mixture", arm)
                used = found[arm] - _accuracy(taught, ids, way[:, 1], False)
        tick("answers by lot")
        best = found["rewards"]
        return {
            "learns": best - start,
            "lot": best - found["rewards by lot"],
            "word": 0.05 - (found["rewards, word alone"] - best),
            "used": used,
            "by lot": by_lot(ids, way, seed, TINY if tiny else LOT_STEPS),
            **{f"accuracy | {arm}": value for arm, value in found.items()},
        }


def by_lot(ids: Tensor, way: Tensor, seed: int, steps: int) -> float:
    """Return the accuracy of a decoder on answers by lot of questions it did not see, less 1/8."""
    answer, net = labels_by_lot(ids, CELLS, seed), drawn(lambda: _loop(decoder()), seed)
    by_chance = torch.cat([way[:, :-1], answer[:, None]], 1)
    imitate(net.model, ids, by_chance, steps, lambda: False, seed)
    return _accuracy(net, ids, answer, False) - 1 / CELLS


def _loop(model: nn.Module) -> LatentLoop:
    return LatentLoop(model, n_steps=1, mix="gate", feedback="expected_embedding")


@torch.no_grad()
def _accuracy(net: LatentLoop, ids: Tensor, answer: Tensor, gated: bool) -> float:
    logits = (looped if gated else word_alone)(net, ids[FIT:])[2]
    return float((logits.argmax(1) == CELLS * CELLS + answer[FIT:]).double().mean())
