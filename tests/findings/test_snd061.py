import json
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

import sonde
from findings import _evidence as arrays
from findings._nets import assert_clear, assert_raised
from sonde.findings.codes.snd061 import SND061
from sonde.findings.rule import Check
from sonde.findings.settings import ScanSettings

OWN = {"labels_are_models": True}


@cache
def styled(share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return digits of which some are white on black, a style that the net was not trained on."""
    x, label = arrays.digits()
    order = arrays.shuffled(len(x), 3)
    x, label = x[order], label[order]
    style = torch.arange(len(x)) < share * len(x)
    return torch.where(style[:, None], 1 - x, x), label, style


def ended(x: Tensor, label: Tensor, logits: Tensor | None = None, **facts: object) -> Check:
    sites, own = arrays.states(x)
    logits = own if logits is None else logits
    return SND061().check(arrays.evidence_of(sites, label=label, logits=logits, facts=OWN | facts))


@pytest.mark.slow
def test_a_rare_style_is_found_in_the_states() -> None:
    x, label, style = styled(0.08)
    finding = assert_raised(ended(x, label), "warning")
    named = torch.zeros(len(x), dtype=torch.bool)
    named[list(finding.examples)] = True
    assert torch.equal(named, style)
    x, label, _ = styled(0.0)
    assert_clear(ended(x, label))


@pytest.mark.slow
@pytest.mark.truth("planted: a constant on one logit")
def test_a_class_that_is_answered_too_often_is_told_with_the_constant_that_was_tried() -> None:
    x, label = arrays.digits()
    own = arrays.states(x)[1].clone()
    own[:, 3] += 9.0
    finding = assert_raised(ended(x, label, own), "warning")
    assert finding.sentence.startswith("answer 3")
    assert finding.fix.startswith("logits[:, 3] -= ")
    assert finding.trial is None  # an advice: what causes it is left to other rules


@pytest.mark.slow
def test_a_cluster_between_classes_is_a_note_where_the_model_says_so() -> None:
    x, label, style = styled(0.08)
    logits = 9.0 * one_hot(label, 10).double()
    answer = torch.where(torch.arange(len(x)) % 2 == 0, (label + 1) % 10, label)
    doubtful = one_hot(answer, 10) + 0.9 * one_hot((label + 5) % 10, 10)
    for sure, level in ((1.0, "note"), (11.0, "note"), (30.0, "warning")):
        said = torch.where(style[:, None], sure * doubtful, logits)
        assert_raised(ended(x, label, said), level)


@pytest.mark.slow
def test_a_model_too_sure_of_all_rows_is_not_blamed_for_a_cluster() -> None:
    x, label, style = styled(0.08)
    i = torch.arange(len(x))
    wrong = torch.where(style, i % 2 == 0, i % 13 == 0)
    answer = torch.where(wrong, (label + 1) % 10, label)
    second = 0.9 * one_hot((label + 5) % 10, 10) * style[:, None]
    sure = 40.0 * (one_hot(answer, 10) + second)
    assert_raised(ended(x, label, sure), "note")
    rest_is_right = torch.where(style[:, None], sure, 40.0 * one_hot(label, 10))
    assert_raised(ended(x, label, rest_is_right), "warning")


@pytest.mark.slow
def test_a_column_of_the_user_tells_the_group_and_chance_does_not() -> None:
    x, label, _ = styled(0.0)
    broken = torch.arange(len(x)) % 12 == 0
    wrong = broken & (torch.arange(len(x)) % 5 > 1)
    logits = 9.0 * one_hot(torch.where(wrong, (label + 1) % 10, label), 10)

    def columns(examples: list[int]) -> dict[str, list[str]]:
        return {"sensor": ["B" if broken[i] else "A" for i in examples]}

    finding = assert_raised(ended(x, label, logits, own_columns=columns), "warning")
    assert finding.sentence.startswith("sensor = B: correct on")
    assert sorted(finding.examples) == torch.nonzero(broken).flatten().tolist()
    wrong = wrong[arrays.shuffled(len(x), 5)]
    by_chance = 9.0 * one_hot(torch.where(wrong, (label + 1) % 10, label), 10)
    assert ended(x, label, by_chance, own_columns=columns).state == "clear"


@pytest.mark.slow
def test_a_column_of_a_file_is_read_and_its_members_have_their_lines(tmp_path: Path) -> None:
    x, label, _ = styled(0.0)
    kind = ["B" if i % 10 == 0 else "A" for i in range(600)]
    label = torch.where(torch.arange(len(x)) % 10 == 0, (label + 1) % 10, label)
    file = tmp_path / "rows.jsonl"
    lines = [
        json.dumps(
            {
                "x": (2 * x[i] - 1).reshape(1, 8, 8).tolist(),
                "label": int(label[i]),
                "sensor": kind[i],
            }
        )
        for i in range(600)
    ]
    file.write_text("\n".join(lines))
    module = sonde.load("sonde:digits")
    report = sonde.scan(module, file, settings=ScanSettings(progress=False, only=("SND061",)))
    (found,) = report.findings
    assert found["sentence"].startswith("sensor = B: correct on 0")
    assert set(found["places"]) <= {f"line {i + 1}" for i in range(0, 600, 10)}
    (group,) = report.json()["rows"]["weak_groups"]
    assert group["n"] == 60
