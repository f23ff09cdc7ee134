"""Test whether a small generator copies its training rows, and whether more data helps.

The generator is a flow-matching net of three layers on digits of 64 pixels. It says nothing about
large generators; what it shows is that the statistic sees copying where there is copying.
"""

from typing import final

import torch
from torch import Tensor, nn

from sonde import Model
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.arms import note, note_again
from sonde_studies.recipes.replication_check import replication_check
from sonde_studies.study import Claim, Figures, Study, Tick

SIZES, HELD, MADE = (60, 240, 1000), 600, 200
STEPS, BATCH, WIDTH, EULER = 2500, 128, 256, 30


@final
class ReplicationCheckStudy(Study):
    """A digit generator trained on few rows, on many rows, and on duplicated rows."""

    name = "replication-check"
    title = "does the ratio of nearest rows tell a generator that copies from others?"
    fidelity = "the survey's nearest-row ratio; the threshold is ours: a rank among held-out rows"
    data = "digits: 60, 240 or 1,000 to train on, 600 held out; 200 samples of each generator"
    claims = (
        Claim(
            "few",
            "A generator trained on 60 rows copies them.",
            "share of samples that are copies less 0.01, training on 60",
        ),
        Claim(
            "falls",
            "Trained on 1,000 rows it copies less.",
            "share of copies after training on 60 less that after training on 1,000",
            arms=("train on 60", "train on 1000"),
        ),
        Claim(
            "doubled",
            "Ten rows that stand in the training data twenty times are copied more than others.",
            "share of copies among samples nearest to such rows, less that among the others",
            arms=("train on doubled rows", "other rows"),
        ),
    )
    null = Claim(
        "fresh",
        "Fresh digits in place of samples are no copies.",
        "share called copies",
        above=0.01,
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a generator on each number of rows, and run the recipe on its samples."""
        x, _ = shuffled_digits(seed)
        eye, fresh = Model(nn.Sequential(nn.Identity()).eval()), x[-HELD:]
        steps = 60 if tiny else STEPS

        def copies(samples: Tensor, seen: Tensor) -> float:
            parts = [list(part) for part in (samples, seen, fresh)]
            return float(replication_check(eye, *parts, site="0", progress=False).value)

        shares = {}
        for n in SIZES:
            tick(f"train on {n}")
            shares[n] = copies(generated(x[:n], seed, steps), x[:n])
        tick("train on doubled rows")
        seen = torch.cat([x[:10].repeat(20, 1), x[10:240]])
        made = generated(seen, seed, steps)
        note_again("other rows", "train on doubled rows")
        own = torch.cdist(made, x[:240]).argmin(1) < 10
        twice, once = (
            copies(part, x[:240]) if len(part) >= 20 else 0.0 for part in (made[own], made[~own])
        )
        return {
            "few": shares[SIZES[0]] - 0.01,
            "falls": shares[SIZES[0]] - shares[SIZES[-1]],
            "doubled": twice - once,
            "fresh": copies(x[1000 : 1000 + MADE - 3], x[:600]),
            **{f"copies | {n} rows": share for n, share in shares.items()},
            "copies | nearest to doubled rows": twice,
            "copies | nearest to others": once,
        }


@torch.enable_grad()
def generated(x: Tensor, seed: int, steps: int) -> Tensor:
    """Return samples of a flow-matching net trained on rows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Linear(65, WIDTH),
            nn.SiLU(),
            nn.Linear(WIDTH, WIDTH),
            nn.SiLU(),
            nn.Linear(WIDTH, 64),
        )
        note(rows=len(x))
        optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
        for _ in range(steps):
            goal = x[torch.randint(len(x), (BATCH,))]
            noise, time = torch.randn_like(goal), torch.rand(BATCH, 1)
            at = (1 - time) * noise + time * goal
            optimiser.zero_grad()
            (net(torch.cat([at, time], 1)) - goal).square().mean().backward()
            optimiser.step()
        with torch.no_grad():
            made = torch.randn(MADE, 64)
            for k in range(EULER):
                time = torch.full((MADE, 1), k / EULER)
                goal = net(torch.cat([made, time], 1))
                made = made + (goal - made) / (EULER - k)
    return made.detach()
