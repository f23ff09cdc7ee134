"""Test whether training leaves less work to a language model's second half.

Contributions fall with depth in untrained models too, so each model is compared with itself before
training. Code of Python's standard library, read as bytes.
"""

from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sonde.core import Model
from sonde.data import open_inputs
from sonde.measure import depth_use, regression
from sonde_studies._gpt2 import gpt2, next_token_loss
from sonde_studies._separation import rank_correlation
from sonde_studies._written import code, pieces
from sonde_studies.arms import note
from sonde_studies.parts.lots import LOTS, share_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn

DEPTHS, WIDTH, HEADS, LENGTH, STEPS, BATCH, RATE = (4, 8), 64, 4, 48, 350, 16, 2e-3
READ = 32


@final
class DepthUseStudy(Study):
    """Two byte-level language models, four and eight blocks deep, before and after training."""

    name = "depth-use"
    title = "does training leave less to the later blocks of a language model than chance does?"
    paper = "csordas2025depth"
    fidelity = (
        "contributions and skips as published, means in place of maxima; small models of a short "
        "context, trained for a minute, where the original looks at finished ones of billions"
    )
    data = "Python's standard library as bytes; GPT-2 blocks, 64 wide, four and eight of them"
    claims = (
        Claim(
            "second half",
            "The second half of eight blocks contributes less than before training.",
            "share of all contributions, untrained less trained",
            arms=("8 blocks", "untrained"),
        ),
        Claim(
            "without the first",
            "It does so also where the first block, which reads embeddings, is not counted.",
            "share of the last four among seven blocks, untrained less trained",
            arms=("8 blocks", "untrained"),
        ),
        Claim(
            "skips fall",
            "Skipping a late block changes later ones less, compared with an early one, than "
            "before training.",
            "mean block number weighted by effects of skips, untrained less trained",
            arms=("8 blocks", "untrained"),
        ),
        Claim(
            "answer",
            "Skipping one of the first half rather than one of the second changes the answer more "
            "than before training.",
            "difference of mean changes of probabilities, trained less untrained",
            arms=("8 blocks", "untrained"),
        ),
        Claim(
            "stretched",
            "Layers of the deeper model are found at the same relative depth of the shallow one, "
            "more than before training.",
            "rank correlation of a deep block and the shallow one that explains it best, trained "
            "less untrained",
            arms=("8 blocks", "untrained"),
        ),
    )
    null = Claim("by lot", "Half of the blocks by lot contribute half.",
                 f"share of all contributions, trained, mean of {LOTS} lots, less 0.5")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train both models, and measure them before and after."""
        draw = np.random.default_rng(seed)
        texts = torch.tensor(pieces(code(), 400 if tiny else 2000, LENGTH, draw))
        n = 8 if tiny else 2 * READ
        fresh, learned = texts[:n], texts[n:]
        found: dict[str, Any] = {}
        figures: dict[str, float] = {}
        models: dict[int, Any] = {}
        tick("untrained")
        note(updates=0)
        for depth in DEPTHS:
            new = drawn(lambda depth=depth: gpt2(256, LENGTH, WIDTH, depth, HEADS), seed)
            models[depth] = new.eval()
            found[f"untrained, {depth}"] = _used(models[depth], fresh)
        tick("maps")
        places = [_places(models, fresh)]
        for depth in DEPTHS:
            tick(f"{depth} blocks")
            figures[f"nats per byte | {depth} blocks"] = _train(
                models[depth], learned, fresh, seed, 5 if tiny else STEPS
            )
            found[f"trained, {depth}"] = _used(models[depth], fresh)
        tick("maps")
        places.append(_places(models, fresh))
        before, after = found["untrained, 8"], found["trained, 8"]
        for name, result in found.items():
            figures[f"second half | {name}"] = float(result)
            figures[f"depth of effects | {name}"] = result.depth
            for figure in ("contribution", "answer_change"):
                for i, v in enumerate(getattr(result, figure).tolist()):
                    figures[f"{figure}, {name} | {i + 1}"] = v
        changes = [float(r.answer_change[:4].mean() - r.answer_change[4:].mean())
                   for r in (before, after)]  # fmt: skip
        rest = [float(r.contribution[4:].sum() / r.contribution[1:].sum()) for r in (before, after)]
        return {
            "second half": float(before) - float(after),
            "without the first": rest[0] - rest[1],
            "skips fall": before.depth - after.depth,
            "answer": changes[1] - changes[0],
            "stretched": places[1] - places[0],
            "by lot": share_by_lot(after.contribution, DEPTHS[1] // 2, seed) - 0.5,
            "depths of maps | untrained": places[0],
            "depths of maps | trained": places[1],
            **figures,
        }


@torch.enable_grad()
def _train(module: Any, texts: Tensor, fresh: Tensor, seed: int, steps: int) -> float:
    """Train in place; return the mean loss per byte on new texts."""
    draw = torch.Generator().manual_seed(seed)
    note(rows=len(texts))
    optimiser = torch.optim.AdamW(module.parameters(), lr=RATE, weight_decay=0.1)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min((step + 1) / 20, 1.0)
        optimiser.zero_grad()
        ids = texts[torch.randint(len(texts), (BATCH,), generator=draw)]
        next_token_loss(module(ids).logits, ids).backward()
        optimiser.step()
    with torch.no_grad():
        return float(next_token_loss(module(fresh).logits, fresh))


def _used(module: Any, ids: Tensor) -> Any:
    rows = [{"input_ids": row} for row in ids]
    inputs = open_inputs(Model(module, task="causal"), rows, batch_size=READ)
    return depth_use(module, inputs.batches(0, len(rows)), leave_out=1)


@torch.no_grad()
def _places(models: dict[int, Any], ids: Tensor) -> float:
    """Return the rank correlation of deep blocks and the shallow ones that explain them best."""
    states = [
        [h[:, 1:].flatten(0, 1) for h in model(ids, output_hidden_states=True).hidden_states[1:]]
        for model in (models[depth] for depth in DEPTHS)
    ]
    group = torch.arange(len(ids)).repeat_interleave(LENGTH - 1)
    shares = [[float(regression(x, y, group=group)) for x in states[0]] for y in states[1]]
    return rank_correlation(range(len(shares)), [float(np.argmax(row)) for row in shares])
