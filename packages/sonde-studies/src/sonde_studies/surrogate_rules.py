"""Test whether rules on few inputs imitate a model of many as well as rules on all."""

from typing import final

import torch
from torch import nn

from sonde.explain import SurrogateRules
from sonde_studies._digits import shuffled, train
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick

N, NOISE, FEW, DEPTH, STEPS = 1500, 136, 20, 5, 150


@final
class SurrogateRulesStudy(Study):
    """A net on digits with more noise columns than pixels, imitated by trees of depth 5."""

    name = "surrogate-rules"
    title = "do rules over twenty inputs answer as a net of two hundred does?"
    fidelity = "reconstructed: probe, shuffling and a tree; nothing was chosen on held-out rows"
    data = "64 pixels of digits and 136 columns of noise; odd against even"
    claims = (
        Claim(
            "few over constant",
            "Rules over 20 inputs answer as the net does more often than its usual answer.",
            "difference of shares",
            arms=("20 inputs", "usual answer"),
        ),
        Claim(
            "few against all",
            "Rules over 20 inputs lose less than .03 against rules over all 200.",
            "difference of shares",
            above=-0.03,
            arms=("20 inputs", "200 inputs"),
        ),
        Claim(
            "no noise",
            "At least nine in ten of the 20 inputs are pixels.",
            "share",
            above=0.9,
        ),
    )
    null = Claim(
        "null", "Rules for a coin that ignores the inputs, beyond the coin's half.", "share"
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train the net and imitate it."""
        draw = torch.Generator().manual_seed(seed)
        x, kind = (v[: 400 if tiny else N] for v in shuffled(draw))
        label, rows = kind % 2, torch.cat([x, torch.rand(len(x), NOISE, generator=draw)], 1)
        net = nn.Sequential(nn.Linear(rows.shape[1], 64), nn.ReLU(), nn.Linear(64, 2))
        tick("training")
        train(net, rows, label, seed, 20 if tiny else STEPS, 3e-3)
        tick("imitating")
        few = SurrogateRules(FEW, DEPTH, seed=seed).explain(net, rows)
        every = SurrogateRules(None, DEPTH, seed=seed).explain(net, rows)
        for name in ("20 inputs", "200 inputs", "usual answer"):
            note_for(name, rows=len(rows))
        fresh = torch.Generator().manual_seed(seed + 1)

        def coin(x: torch.Tensor) -> torch.Tensor:
            return torch.randn(len(x), 2, generator=fresh)

        nothing = SurrogateRules(5, 2, seed=seed).explain(coin, rows)
        return {
            "few over constant": float(few) - float(torch.as_tensor(few.null)),
            "few against all": float(few) - float(every),
            "no noise": float((few.features < 64).double().mean()),
            "null": float(nothing) - 0.5,
            "fidelity | 20 inputs": float(few),
            "fidelity | 200 inputs": float(every),
            "rules": float(len(few.rules)),
        }
