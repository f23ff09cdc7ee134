"""Test whether an entropy loss keeps attention heads in a band, and whether that helps.

Texts repeat a random piece, so that the second half can be foretold by looking back.
"""

from contextlib import nullcontext
from typing import Any, final

import torch
from torch import Tensor, nn

import sonde
from sonde.stats import query_entropy
from sonde.train import AttentionEntropy
from sonde_studies._gpt2 import gpt2
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn

SYMBOLS, PIECE, DIM, BLOCKS, LEARN, TINY, HELD = 16, 8, 32, 2, 150, 3, 256
BATCH, RATE, WEIGHT, LOW, HIGH = 32, 3e-3, 1.0, 0.3, 0.7


@final
class AttentionEntropyStudy(Study):
    """A linear decoder without norms, with the entropy loss on every block and without."""

    name = "attention-entropy"
    title = "does a decoder without norms learn better if its heads' entropies are held?"
    paper = "jha2025entropy"
    fidelity = "two blocks on planted texts; thresholds start at a half and learn"
    data = "simulated: pieces of eight symbols of sixteen, said twice"
    claims = (
        Claim("held", "What the loss lowers in training is lower on new texts: the distance from a "
              "band.",
              "mean distance from [0.3, 0.7] of the entropy over its maximum, without less with",
              arms=("held", "plain")),
        Claim("better", "Held heads foretell the second half better.",
              "nats for each symbol of the second half, without less with",
              arms=("held", "plain")),
    )  # fmt: skip
    null = Claim("no weight", "At weight 0 the loss changes nothing.",
                 "nats for each symbol of the second half, without less with it")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train both arms, and one with the loss at weight 0."""
        tick("plain")
        steps = TINY if tiny else LEARN
        plain = _trained(None, seed, steps)
        tick("held")
        held = _trained(WEIGHT, seed, steps)
        tick("no weight")
        off = _trained(0.0, seed, steps)
        return {
            "held": plain[1] - held[1],
            "better": plain[0] - held[0],
            "no weight": plain[0] - off[0],
            "nats | plain": plain[0],
            "nats | held": held[0],
            "distance | plain": plain[1],
            "distance | held": held[1],
        }


def _decoder() -> Any:
    more = {"activation_function": "linear", "initializer_range": 0.1}
    net = gpt2(SYMBOLS, 2 * PIECE, DIM, BLOCKS, heads=4, **more)
    net.set_attn_implementation("eager")
    for block in net.transformer.h:
        block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
    return net


def _texts(n: int, draw: torch.Generator) -> Tensor:
    return torch.randint(SYMBOLS, (n, PIECE), generator=draw).repeat(1, 2)


def _nats(net: Any, ids: Tensor) -> Tensor:
    """Return the cross-entropy on the second half."""
    logits = net(input_ids=ids).logits[:, PIECE - 1 : -1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, PIECE:].flatten())


def _trained(weight: float | None, seed: int, steps: int) -> tuple[float, float]:
    """Return the loss on new texts in nats, and the heads' mean distance from the band."""
    net, draw = drawn(_decoder, seed).train(), torch.Generator().manual_seed(seed)
    losses = {f"blocks.{i}:probs": AttentionEntropy() for i in range(BLOCKS)}
    context = nullcontext() if weight is None else sonde.training(net, losses, weight=weight)
    with context as terms, torch.enable_grad():
        learned = list(net.parameters())
        if terms is not None:
            _nats(net, torch.zeros(2, 2 * PIECE, dtype=torch.long))
            terms.loss()  # finds the numbers of heads
            learned += terms.parameters() if weight else []  # at 0 nothing was looked at
        optimiser = torch.optim.Adam(learned, lr=RATE)
        for _ in range(steps):
            loss = _nats(net, _texts(BATCH, draw))
            loss = loss if terms is None else loss + terms.loss()
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            if terms is not None:
                terms.step()
    net.eval()
    ids = _texts(HELD, draw)
    with torch.no_grad():
        maps = torch.stack(net(input_ids=ids, output_attentions=True).attentions).flatten(0, 1)
        nats, most = query_entropy(maps, torch.ones_like(maps).tril().bool())
        share = (nats / most.clamp(min=1e-9))[..., 1:]
        outside = (LOW - share).clamp(min=0) + (share - HIGH).clamp(min=0)
        return float(_nats(net, ids)), float(outside.mean())
