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
from sonde_studies._language import policy_loss
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn

START, ENOUGH, UPDATES, TINY = 1500, 0.4, 120, 2
QUESTIONS, ANSWERS, DRIFT = 32, 8, 0.005
RATES = {"model": 1e-3, "gates": 2e-2, "rate": 2e-1}
"""Of Adam for the parts of ``LatentLoop``, in the published proportions."""
ORDERS = (10_000, 20_000)
"""Added to the seed: of questions and samples of all arms, and of the null arm's other training."""


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
              "accuracy, gated by rewards less the start"),
        Claim("lot", "They do so because they are earned: dealt by lot they teach less.",
              "accuracy, gated, rewards earned less dealt by lot"),
        Claim("word", "The gated step learns as much as a word alone, to five points.",
              "0.05 less accuracy of the word over the gated step", premise="used"),
        Claim("used", "It comes to use the mixture: without it it is right less often.",
              "accuracy, gated by rewards less the same without the mixture"),
    )  # fmt: skip
    null = Claim(
        "order",
        "Two trainings by rewards that differ in questions and samples alone are as accurate.",
        "accuracy, gated by rewards less gated in another order",
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
        for arm, gated, earned, added in (
            ("rewards", True, True, ORDERS[0]),
            ("rewards, another order", True, True, ORDERS[1]),
            ("rewards by lot", True, False, ORDERS[0]),
            ("rewards, word alone", False, True, ORDERS[0]),
        ):
            tick(arm)
            taught = deepcopy(net)
            _reward(taught, ids, way[:, 1], gated, earned, TINY if tiny else UPDATES, seed + added)
            found[arm] = _accuracy(taught, ids, way[:, 1], gated)
            if arm == "rewards":
                used = found[arm] - _accuracy(taught, ids, way[:, 1], False)
        best = found["rewards"]
        return {
            "learns": best - start,
            "lot": best - found["rewards by lot"],
            "word": 0.05 - (found["rewards, word alone"] - best),
            "used": used,
            "order": best - found["rewards, another order"],
            **{f"accuracy | {arm}": value for arm, value in found.items()},
        }


def _loop(model: nn.Module) -> LatentLoop:
    return LatentLoop(model, n_steps=1, mix="gate", feedback="expected_embedding")


def _rollout(
    net: LatentLoop,
    ids: Tensor,
    gated: bool,
    words: Tensor | None = None,
    draw: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return words, their log-probabilities and the answer's logits, as ``net.rollout`` does."""
    if gated:
        return net.rollout(ids, words=words, draw=draw)
    chance: Tensor = (net.model(ids).logits[:, -1] / net.temperature).log_softmax(1)
    if words is None:
        likeliest = chance.argmax(1, keepdim=True)
        words = torch.multinomial(chance.exp(), 1, generator=draw) if draw else likeliest
    return words, chance.gather(1, words), net.model(torch.cat([ids, words], 1)).logits[:, -1]


def _likely(net: LatentLoop, ids: Tensor, gated: bool, words: Tensor, answer: Tensor) -> Tensor:
    """Return the log-probabilities of a word and of the answer after it."""
    _, told, logits = _rollout(net, ids, gated, words)
    chance = (logits / net.temperature).log_softmax(1)
    return torch.cat([told, chance.gather(1, answer)], 1)


def _reward(
    net: LatentLoop, ids: Tensor, answer: Tensor, gated: bool, earned: bool, updates: int, seed: int
) -> None:
    """Train by rewards of sampled answers; those that are not earned are dealt in each group."""
    draw, start = torch.Generator().manual_seed(seed), deepcopy(net)
    named = [*net.named_parameters()]
    parts = {part: [p for n, p in named if n.split(".")[0] == part] for part in RATES}
    adam = torch.optim.Adam([{"params": parts[part], "lr": RATES[part]} for part in RATES])
    for _ in range(updates):
        rows = torch.randint(FIT, (QUESTIONS,), generator=draw)
        asked, wanted = (x[rows].repeat_interleave(ANSWERS, 0) for x in (ids, answer))
        with torch.no_grad():
            words, _, logits = _rollout(net, asked, gated, draw=draw)
            chance = (logits / net.temperature).softmax(1)
            said = torch.multinomial(chance, 1, generator=draw)
            before = _likely(start, asked, gated, words, said)
        reward = (said[:, 0] == CELLS * CELLS + wanted).float().reshape(-1, ANSWERS)
        if not earned:
            reward = reward.gather(1, torch.rand(reward.shape, generator=draw).argsort(1))
        likely = _likely(net, asked, gated, words, said)
        apart = before - likely
        drift = (apart.exp() - apart - 1).mean()
        own = torch.ones_like(likely, dtype=torch.bool)
        adam.zero_grad()
        (policy_loss(likely, own, reward, standard=True) + DRIFT * drift).backward()
        adam.step()


@torch.no_grad()
def _accuracy(net: LatentLoop, ids: Tensor, answer: Tensor, gated: bool) -> float:
    logits = _rollout(net, ids[FIT:], gated)[2]
    return float((logits.argmax(1) == CELLS * CELLS + answer[FIT:]).double().mean())
