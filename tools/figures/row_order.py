"""Print how often data without a fault raise SND047, SND048 and SND062.

Digits and their labels in 200 random orders, each with errors by
chance, imbalanced classes and a column that numbers the rows.
"""

from collections import Counter
from dataclasses import replace

import torch
from sklearn.datasets import load_digits
from tools.figures._table import Table
from torch.nn.functional import one_hot

from sonde.core.stream import Stream
from sonde.engine.folding import observe_stream
from sonde.findings.codes.snd047 import SND047
from sonde.findings.codes.snd048 import SND048
from sonde.findings.codes.snd062 import SND062
from sonde.findings.evidence.facts import data_evidence
from sonde.findings.evidence.gather import scan_statistics
from sonde.findings.evidence.record import Evidence

ROWS = 600
RULES = (SND047(), SND048(), SND062())


def resample(random: torch.Generator) -> Evidence:
    """Return rows in random order, a third of the classes rare, errors on 10 % by chance."""
    x, label = map(torch.from_numpy, load_digits(return_X_y=True))
    rows = torch.randperm(len(x), generator=random)
    rows = rows[(label[rows] < 7) | (torch.rand(len(rows), generator=random) < 0.3)][:ROWS]
    x, label = x[rows], label[rows]
    answer = torch.where(torch.rand(ROWS, generator=random) < 0.1, (label + 1) % 10, label)
    numbers = torch.randperm(ROWS, generator=random).tolist()
    stream = Stream.of(x, label=label, logits=9.0 * one_hot(answer, 10))
    data = replace(
        data_evidence(stream, "digits"),
        labels_are_models=True,
        key_columns=lambda examples: {"row": [numbers[i] for i in examples]},
    )
    statistics = scan_statistics(stream, ["label", "order", "logits"], True, None)
    states = observe_stream(stream, dict(sorted(statistics.requests().items())), None)
    counters = {f"rows|{site.key}": ROWS for site in statistics.pooled}
    return Evidence(
        statistics.sites(states, counters), statistics.sampled_columns(states), data, counters
    )


def table(resamples: int = 200) -> Table:
    """Print the table.

    Parameters
    ----------
    resamples
        Random orders of the digits.
    """
    random, raised, judged = torch.Generator().manual_seed(0), Counter[str](), Counter[str]()
    for _ in range(resamples):
        evidence = resample(random)
        for rule in RULES:
            state = rule.check(evidence).state
            raised[rule.code] += state == "raised"
            judged[rule.code] += state in ("raised", "clear")
    for rule in RULES:
        yield f"{rule.code}: {raised[rule.code]} of {judged[rule.code]} raised"
