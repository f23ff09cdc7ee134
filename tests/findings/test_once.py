"""Results that are kept with their evidence, and not longer."""

import gc
import weakref

import torch

from findings._evidence import evidence_of
from sonde.findings.evidence.once import once
from sonde.findings.evidence.record import Evidence


def test_a_result_is_computed_once_and_dies_with_an_evidence_that_it_holds() -> None:
    asked = list[int]()

    @once
    def holds(evidence: Evidence) -> tuple[Evidence]:
        asked.append(1)
        return (evidence,)

    evidence = evidence_of(torch.randn(30, 4))
    assert holds(evidence) is holds(evidence)
    assert asked == [1]
    alive = weakref.ref(evidence)
    del evidence
    gc.collect()
    assert alive() is None
