"""Test whether units keep their weights' tokens during fine-tuning, and write them.

A unit of an MLP has a row of the up-projection, which the paper decodes, and a column of the
down-projection, which it adds to the stream where it is on.
"""

from copy import deepcopy
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

import sonde
from sonde import load
from sonde.edit import ClampUnit
from sonde.explain import NeuronLens
from sonde.tap import Tap
from sonde_studies._gpt2 import next_token_loss
from sonde_studies._written import code, pieces, prose
from sonde_studies.arms import note, note_for
from sonde_studies.study import Claim, Figures, Study, Tick

LENGTH, BATCH, STEPS, RATE = 64, 16, 80, 3e-4
TEXTS, UNITS = 16, 12
SIDES = {"up": "up_proj", "down": "down_proj"}


@final
class NeuronLensStudy(Study):
    """The shipped byte-level language model, and a copy fine-tuned on prose.

    A clamped unit is held at its largest value on texts; what is counted is how much likelier its
    token gets at every place, against the tokens of other units of its layer. The last layer is
    not counted: there the head alone stands behind a unit.
    """

    name = "neuron-lens"
    title = "do units keep the token that their weights name, and do they write it?"
    paper = "lmhead2024neurons"
    fidelity = (
        "the paper's decoding of up-projections and its clamping; the down-projection is ours"
    )
    data = "Python's standard library, tuned on scikit-learn's descriptions; 7 x 512 units"
    place = "byte-model"
    claims = (
        Claim(
            "kept",
            "More than three quarters of the units keep their top token, by the up-projection.",
            "share of units",
            above=0.75,
        ),
        Claim(
            "written",
            "Before the last layer a clamped unit makes the top token of its down-projection "
            "likelier.",
            "log-probability, nats, rise less that of another unit's token",
            arms=("own token", "another unit's token"),
        ),
        Claim(
            "read is written",
            "A clamped unit makes the top token of its up-projection likelier.",
            "log-probability, nats, rise less that of another unit's up-projection",
            arms=("own token", "another unit's token"),
        ),
        Claim(
            "late units",
            "The later half of these layers writes its tokens more than the earlier half.",
            "nats, rises less those of other units' tokens, later less earlier layers",
            arms=("later layers", "earlier layers"),
        ),
    )
    null = Claim("untuned", "A copy that is tuned in no step keeps every token.",
                 "share of units that lose their token, mean of both projections")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Fine-tune a copy, compare tokens, and clamp units of the model."""
        draw = np.random.default_rng(seed)
        model = load("sonde:stdlib")
        base: Any = model.module
        steps = 2 if tiny else STEPS
        texts = torch.tensor(pieces(prose(), TEXTS + steps * BATCH, LENGTH, draw))
        fresh, used = texts[:TEXTS], texts[TEXTS:]
        tick("tuning")
        tuned = _tuned(base, used, steps, seed)
        layers = range(3 if tiny else base.config.num_hidden_layers)
        sites = {s: [f"model.layers.{i}.mlp.{name}" for i in layers] for s, name in SIDES.items()}
        top = {side: torch.stack([_tokens(base, name) for name in n]) for side, n in sites.items()}
        same = {side: torch.tensor(kept(base, tuned, names)) for side, names in sites.items()}
        untuned = _tuned(base, used, 0, seed)
        lost = [1 - v for names in sites.values() for v in kept(base, untuned, names)]
        tick("clamping")
        ids = torch.tensor(pieces(code(), TEXTS, LENGTH, draw))
        source = torch.Generator().manual_seed(seed)
        rise = _rises(base, sites["down"], top, ids, 3 if tiny else UNITS, source)
        for name in ("own token", "another unit's token"):
            note_for(name, rows=len(ids))
        written, last = rise["down"] - rise["other"], layers[-1]
        half = last // 2
        for name, n_layers in (("later layers", last - half), ("earlier layers", half)):
            note_for(name, rows=n_layers * len(ids))
        return {
            "kept": float(same["up"].mean()),
            "kept, down": float(same["down"].mean()),
            "written": float(written[:last].mean()),
            "read is written": float((rise["up"] - rise["other up"])[:last].mean()),
            "late units": float(written[half:last].mean() - written[:half].mean()),
            "untuned": sum(lost) / len(lost),
            "nats per byte of prose | base": _loss(base, fresh),
            "nats per byte of prose | tuned": _loss(tuned, fresh),
            **{f"kept, {side} | layer {i}": float(same[side][i]) for side in SIDES for i in layers},
            **{f"written | layer {i}": float(written[i].mean()) for i in layers},
        }


def kept(base: nn.Module, other: nn.Module, sites: list[str]) -> list[float]:
    """Return the share of units of each site that name the same token in both models."""
    lens = NeuronLens(n=1)
    pairs = ([lens.explain(net, site=site) for net in (base, other)] for site in sites)
    return [before.agreement(after) for before, after in pairs]


def _tokens(net: nn.Module, site: str) -> Tensor:
    return NeuronLens(n=1).explain(net, site=site).top[:, 0]


@torch.enable_grad()
def _tuned(base: nn.Module, texts: Tensor, steps: int, seed: int) -> nn.Module:
    """Return a copy fine-tuned on texts, each used at most a few times."""
    draw = torch.Generator().manual_seed(seed)
    module: Any = deepcopy(base)
    note(rows=len(texts))
    optimiser = torch.optim.AdamW(module.parameters(), lr=RATE)
    for _ in range(steps):
        ids = texts[torch.randint(len(texts), (BATCH,), generator=draw)]
        optimiser.zero_grad()
        next_token_loss(module(input_ids=ids).logits, ids).backward()
        optimiser.step()
    return module.eval()


@torch.no_grad()
def _loss(module: nn.Module, ids: Tensor) -> float:
    return float(next_token_loss(module(input_ids=ids).logits, ids))


@torch.no_grad()
def _rises(
    base: Any, sites: list[str], top: dict[str, Tensor], ids: Tensor, n: int, draw: torch.Generator
) -> dict[str, Tensor]:
    """Return probability changes of clamped units' tokens (layer, unit), and of others."""
    with Tap(base, [f"{site}:in" for site in sites], reducer=None) as tap:
        plain = base(input_ids=ids).logits.log_softmax(2).mean((0, 1))
    largest = [rows.flatten(0, 1).amax(0) for rows in tap.rows.values()]
    names = ("up", "down", "other", "other up")
    found = {name: torch.zeros(len(sites), n) for name in names}
    for i, site in enumerate(sites):
        units = torch.randperm(len(largest[i]), generator=draw)[: 3 * n]
        for j, unit in enumerate(units[:n].tolist()):
            with sonde.editing(base, ClampUnit(unit, float(largest[i][unit])), f"{site}:in"):
                rise = base(input_ids=ids).logits.log_softmax(2).mean((0, 1)) - plain
            found["up"][i, j] = rise[top["up"][i, unit]]
            found["down"][i, j] = rise[top["down"][i, unit]]
            found["other"][i, j] = rise[top["down"][i, units[n + j]]]
            found["other up"][i, j] = rise[top["up"][i, units[n + j]]]
    return found
