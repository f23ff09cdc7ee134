import numpy as np
import pytest
import torch

from findings import _evidence as arrays
from findings._counting import WORDS, Counter, counting
from findings._nets import assert_clear, assert_raised, texts_of
from models import ARCHITECTURES
from scan._zoo import scan_architecture
from sonde.findings.codes.snd029 import SND029
from sonde.findings.evidence.texts.lens import lens_evidence, measure_lens
from sonde.findings.rule import Check


def ended(numbers: list[int], surely: float = 3.0) -> Check:
    """Scan a counter over texts that count among few words, which have other numbers."""
    stream = counting(Counter((surely,)).eval(), n=60)
    draw = np.random.default_rng(0)
    for text in texts_of(stream):
        at = int(draw.integers(4))
        for i in range(len(text)):
            at = at + 1 if draw.random() < 0.9 and at < 8 else int(draw.integers(4))
            text[i] = numbers[at]
    lens = lens_evidence(stream)
    return SND029().check(arrays.evidence_of(torch.randn(40, 3)).having({measure_lens: lens}))


@pytest.mark.slow
def test_a_model_of_random_weights_that_is_sure_is_not_judged() -> None:
    report = scan_architecture(next(a for a in ARCHITECTURES if a.name == "gpt2"))
    states = {c["code"]: c["state"] for c in report.json()["checks"]}
    assert states["SND003"] == "raised"
    assert states["SND029"] == "clear"


@pytest.mark.slow
def test_shuffled_token_numbers_are_raised_and_the_models_own_are_clear() -> None:
    own = list(range(WORDS))
    shuffled = np.random.default_rng(3).permutation(WORDS).tolist()
    assert_raised(ended(shuffled), "warning")
    assert_clear(ended(own))
    assert_clear(ended(shuffled, surely=0.0))  # a model that expects all tokens alike
