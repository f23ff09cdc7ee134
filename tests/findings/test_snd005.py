import torch
from torch import nn

from findings._nets import assert_clear, assert_raised, evidence_of, noise, tensors
from sonde.findings.codes.snd004 import SND004
from sonde.findings.codes.snd005 import SND005
from sonde.findings.codes.snd006 import SND006
from sonde.findings.evidence.modules.module_facts import read_modules


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4)).eval()


def test_a_batch_norm_left_in_training() -> None:
    module = net()
    module[1].train()
    before = {n: b.clone() for n, b in module.named_buffers()}
    evidence = evidence_of(tensors(module, noise(64, 8)))
    check = SND005().check(evidence)
    finding = assert_raised(check, "error")
    assert finding.sentence.startswith(
        "1 still behaves as in training. The result for a row depends on other rows"
    )
    company = SND006().check(evidence)
    assert_raised(company, "error")
    assert company.finding is not None
    assert company.finding.because_of == "SND005"
    assert company.finding.sites[0] == "1"
    assert evidence.get(read_modules).self_check.buffers
    assert module[1].training
    assert not module[0].training
    assert all(torch.equal(b, before[n]) for n, b in module.named_buffers())


def test_a_batch_norm_without_statistics() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6, track_running_stats=False)
    module = nn.Sequential(nn.Conv2d(1, 6, 3), norm, nn.ReLU()).eval()
    evidence = evidence_of(tensors(module, noise(64, 36).reshape(64, 1, 6, 6)))
    finding = assert_raised(SND005().check(evidence), "error")
    assert "1 batch norm (1) has no running statistics" in finding.sentence


def test_a_dropout_left_in_training_explains_chance() -> None:
    module = nn.Sequential(nn.Linear(8, 12), nn.Dropout(0.5), nn.Linear(12, 4)).eval()
    module[1].train()
    evidence = evidence_of(tensors(module, noise(64, 8)))
    assert_raised(SND005().check(evidence), "error")
    chance = SND004().check(evidence)
    assert_raised(chance, "error")
    assert chance.finding is not None
    assert chance.finding.because_of == "SND005"


def test_frozen_statistics_and_a_model_in_training_are_clear() -> None:
    evidence = evidence_of(tensors(net(), noise(64, 8)))
    assert_clear(SND005().check(evidence))
    assert_clear(SND006().check(evidence))
    check = SND005().check(evidence_of(tensors(net().train(), noise(64, 8))))
    assert_clear(check)
    assert "read it in eval mode" in check.reason


def test_a_dropout_of_zero_does_no_harm() -> None:
    module = nn.Sequential(nn.Linear(8, 12), nn.Dropout(0.0), nn.Linear(12, 4)).eval()
    module[1].train()
    assert_clear(SND005().check(evidence_of(tensors(module, noise(64, 8)))))
