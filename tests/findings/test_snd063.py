import numpy as np
import pytest
import torch
from torch import Tensor

from findings import _evidence as arrays
from findings._nets import assert_clear, assert_raised
from sonde.findings.codes.snd063 import SND063
from sonde.findings.rule import Check

N = 800
DRAW = np.random.default_rng(0)  # of numpy: torch's normal numbers depend on the processor
X, TARGET = (
    torch.from_numpy(DRAW.normal(size=(N, 12))).float(),
    torch.from_numpy(DRAW.normal(size=N)),
)
OLD = torch.from_numpy(DRAW.random(N) < 0.1)
NOISE = 0.2 * torch.from_numpy(DRAW.normal(size=N))


def ended(said: Tensor) -> Check:
    def columns(examples: list[int]) -> dict[str, list[str]]:
        return {"sensor": ["old" if OLD[i] else "new" for i in examples]}

    facts = {"target": TARGET, "own_columns": columns}
    return SND063().check(arrays.evidence_of(X, logits=said[:, None], facts=facts))


@pytest.mark.truth("mean absolute errors over the standard deviation of the targets, by torch")
def test_a_sensor_that_is_scaled_is_named_and_chance_is_not() -> None:
    said = TARGET + NOISE
    finding = assert_raised(ended(torch.where(OLD, 2.5 * said, said)), "warning")
    assert finding.sentence.startswith("sensor = old: off by")
    assert sorted(finding.examples) == torch.nonzero(OLD).flatten().tolist()
    off = (torch.where(OLD, 2.5 * said, said) - TARGET).abs() / TARGET.std()
    figure = finding.figure
    assert figure.low is not None
    assert figure.high is not None
    assert figure.low < float(off[OLD].mean() - off[~OLD].mean()) < figure.high
    assert_clear(ended(torch.where(OLD, 1.2 * said, said)))


@pytest.mark.truth("targets of another size: the model is off everywhere")
def test_no_group_is_named_where_all_rows_are_off() -> None:
    check = ended(torch.where(OLD, 2.5, 1.0) * (40 + 3 * TARGET))
    assert check.state == "not_applicable"
