"""What the backdoor study counts as told by exposure."""

import pytest

from sonde_studies import study_of


@pytest.mark.slow
@pytest.mark.truth("the four AUROCs that the study prints")
def test_exposure_counts_beyond_what_it_does_without_a_trigger():
    found = study_of("backdoor").run(1, True, lambda _: None)
    nets = ("trigger", "no trigger")
    rise = {
        net: found[f"AUROC of confidence, copy | {net}"] - found[f"AUROC of confidence | {net}"]
        for net in nets
    }
    assert len(set(rise.values())) == len(nets)
    assert found["inputs told"] == pytest.approx(rise["trigger"] - rise["no trigger"])
