import numpy as np
import pytest
import torch
from torch import nn

from detect.head_rows import SMALL_HEAD, made
from sonde.core.edit import Clamp
from sonde.core.errors import InputError, ShapeError
from sonde.core.state import canonical
from sonde.detect.react import ReAct
from sonde.engine.running import Running
from sonde.tap import editing


@pytest.mark.truth("worked out by hand")
def test_known_values():
    x = torch.tensor([[1.5, 0.5], [1.0, 0.0], [1.5, 1.0]], dtype=torch.float64)
    scorer = ReAct().fit(x, head=SMALL_HEAD)
    assert scorer.edit == Clamp(high=1.5)
    row = torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    assert scorer.score(row).tolist() == pytest.approx([-2.10413061], rel=1e-8)
    assert ReAct().fit(2 * x, head=SMALL_HEAD).score(row).tolist() == pytest.approx(
        [-2.37153903], rel=1e-8
    )


@pytest.mark.truth("the same threshold found as a quantile")
def test_a_fixed_threshold():
    rows = made()
    found = ReAct().fit(rows.x, head=rows.head)
    fixed = ReAct(threshold=found.value).fit(rows.x[:3] * 9, head=rows.head)
    assert torch.equal(fixed.score(rows.fresh), found.score(rows.fresh))
    assert fixed.edit == found.edit
    assert (fixed.conventions["quantile"], fixed.conventions["resolution"]) == (None, 0.0)
    assert "threshold" not in canonical(ReAct())  # older files keep their identity
    with pytest.raises(InputError, match="finite threshold, got nan"):
        ReAct(threshold=float("nan"))


@pytest.mark.truth("pytorch-ood 0.4.0 on the same rows; its percentile interpolates")
def test_matches_a_peer():
    rows = made()
    got = ReAct().fit(rows.x, head=rows.head)
    assert got.value == pytest.approx(3.64707303, abs=0.05)
    want = [0.03254831, -5.38095808, -3.66436434, -1.12303376]
    assert got.score(rows.fresh).tolist() == pytest.approx(want, abs=0.05)


@pytest.mark.truth("numpy over all rows in memory")
@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.9, 0.999])
def test_brute_force(quantile):
    rows = made()
    scorer = ReAct(quantile=quantile).fit(rows.x, head=rows.head)
    threshold = np.quantile(rows.x.numpy(), quantile, method="lower")
    assert scorer.value == pytest.approx(threshold, rel=2**-7, abs=1e-30)
    threshold = scorer.value
    logits = np.minimum(rows.fresh.numpy(), threshold) @ rows.weight.numpy().T + rows.bias.numpy()
    want = -np.log(np.exp(logits).sum(1))
    np.testing.assert_allclose(scorer.score(rows.fresh), want, rtol=1e-10)


@pytest.mark.truth("numpy.quantile over all activations of all units")
def test_the_threshold_of_many_rows_from_any_split():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.exponential(size=(20_000, 6)) * np.arange(1, 7))
    head = (torch.ones(2, 6).double(), None)
    running = Running(ReAct())
    for part in x.split(700):
        running.update(part, head=head)
    found = running.result().value
    assert found == ReAct().fit(x, head=head).value
    assert found == pytest.approx(float(np.quantile(x.numpy(), 0.9)), rel=1e-3)


@pytest.mark.truth("a live model with the edit opened at the input of its head")
def test_the_same_edit_on_a_live_model():
    rows = made(torch.float32)
    head = nn.Linear(6, 3)
    head.load_state_dict({"weight": rows.weight, "bias": rows.bias})
    net = nn.Sequential(nn.Identity(), head)
    scorer = ReAct(quantile=0.6).fit(rows.x, head=rows.head)
    with torch.no_grad(), editing(net, scorer.edit, "1:in"):
        energy = -torch.logsumexp(net(rows.fresh), 1)
    torch.testing.assert_close(scorer.score(rows.fresh), energy)
    assert float((energy + torch.logsumexp(head(rows.fresh), 1).detach()).abs().min()) > 1e-3


def test_a_spike_is_worth_no_more_than_the_threshold():
    head = (torch.eye(2).double(), None)
    scorer = ReAct().fit(torch.rand(200, 2, dtype=torch.float64), head=head)
    spikes = torch.tensor([[5.0, 0.2], [500.0, 0.2]], dtype=torch.float64)
    first, second = scorer.score(spikes).tolist()
    assert first == second


def test_errors_say_what_to_do():
    with pytest.raises(InputError, match=r"ReAct: expected quantile in \[0, 1\), got 1.5"):
        ReAct(quantile=1.5)
    rows = made()
    with pytest.raises(
        ShapeError, match="ReAct: expected rows of width 6, the input width of the model's"
    ):
        ReAct().fit(rows.x[:, :4], head=rows.head)
    with pytest.raises(ShapeError, match=r"ReAct.score: expected dim=6 \(as fitted\), got dim=4"):
        ReAct().fit(rows.x, head=rows.head).score(rows.x[:, :4])
