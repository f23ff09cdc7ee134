"""Print how often weak groups are raised where errors fall by chance, and found where planted.

It puts the errors of a planted data set in 200 random orders:
each is a healthy data set with the same columns and states. ``gap 0`` is the promise of the
intervals alone, ``gap 0.1`` that of SND061. Then the same for losses per token, several of one
text, and for absolute errors of a regression.
"""

import torch
from tools.figures._table import Table
from torch import Tensor

from sonde.metrics import weak_groups

ROWS, TOKENS = 2000, 8


def planted(random: torch.Generator) -> tuple[Tensor, dict[str, Tensor | list[str]], Tensor]:
    """Return errors, columns and states in which a sensor at night, short texts, a style are bad.

    The error rate is 60 % there and 3 % elsewhere.
    """
    length = torch.randint(1, 100, (ROWS,), generator=random).double()
    old, night = torch.rand(2, ROWS, generator=random) < torch.tensor([[0.2], [0.3]])
    states = torch.randn(ROWS, 24, generator=random)
    style = torch.arange(ROWS) % 25 == 0
    states[style] += 4 * torch.randn(24, generator=random)
    bad = (old & night) | (length <= 5) | style
    wrong = torch.rand(ROWS, generator=random) < torch.where(bad, 0.6, 0.03)
    columns = {
        "sensor": ["old" if one else "new" for one in old.tolist()],
        "hour": ["night" if one else "day" for one in night.tolist()],
        "length": length,
    }
    return wrong.double(), columns, states


def losses(kind: str, bad: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return losses with those of bad rows larger, and the group of each: its text, or itself.

    Losses of tokens have a share of their text; those of a regression are absolute errors.
    """
    spread = torch.where(bad, 2.0, 0.5)
    if kind == "regression":
        return (spread * torch.randn(ROWS, generator=random).double()).abs(), torch.arange(ROWS)
    text = torch.arange(ROWS) // TOKENS
    own = torch.randn(ROWS // TOKENS, generator=random).double()[text]
    tokens = torch.rand(ROWS, generator=random).double().log().neg()
    return tokens * (0.4 * own).exp() * (1 + 4 * bad), text


def of_losses(kind: str, resamples: int) -> str:
    """Return a line: how often a group is raised by chance, and found where one is planted.

    The bad group is an old sensor, of one row or text in seven.
    """
    random, raised, found = torch.Generator().manual_seed(1), 0, 0
    for seed in range(resamples):
        text = torch.arange(ROWS) // (TOKENS if kind == "tokens" else 1)
        old = torch.rand(ROWS, generator=random)[text] < 0.15
        states = {"a": torch.randn(ROWS, 24, generator=random)}
        columns = {"sensor": ["old" if one else "new" for one in old.tolist()]}
        for bad in (torch.zeros(ROWS, dtype=torch.bool), old):
            loss, group = losses(kind, bad, random)
            named = weak_groups(loss, group, columns, states, seed=seed)
            raised += bool(named) and not bool(bad.any())
            found += bool(bad.any()) and any(g.text == "sensor = old" for g in named)
    return f"{kind}: false alarms {raised} of {resamples}, planted group found {found}"


def table(resamples: int = 200) -> Table:
    """Print the tables.

    Parameters
    ----------
    resamples
        Random orders of the errors.
    """
    random, rows = torch.Generator().manual_seed(0), torch.arange(ROWS)
    raised = {0.0: 0, 0.1: 0}
    found = 0
    for seed in range(resamples):
        wrong, columns, states = planted(random)
        found += len(weak_groups(wrong, rows, columns, {"a": states}, seed=seed))
        mixed = wrong[torch.randperm(ROWS, generator=random)]
        for gap in raised:
            raised[gap] += bool(
                weak_groups(mixed, rows, columns, {"a": states}, gap=gap, seed=seed)
            )
    for gap, n in raised.items():
        yield f"false alarms, gap {gap:g}: {n} of {resamples}"
    yield f"groups found of 3 planted, mean: {found / resamples:.2f}"
    yield of_losses("tokens", resamples)
    yield of_losses("regression", resamples)
