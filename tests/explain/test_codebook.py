"""Codes in place of states: planted codes, gradients by hand, and a net whose states are known."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sonde.core import EditContext, InputError, ShapeError, Site
from sonde.explain import Codebook
from sonde.explain.codebook import Codes

SITE, CONTEXT = Site("0"), EditContext()


@pytest.fixture(scope="module")
def planted():
    """Orthogonal codes of unequal lengths, and pairs of codes with their means as rows."""
    source = torch.Generator().manual_seed(0)
    lengths = torch.linspace(2.0, 5.0, 8)
    codes = lengths[:, None] * torch.linalg.qr(torch.randn(8, 8, generator=source))[0]
    pairs = torch.rand(200, 8, generator=source).topk(2).indices
    return codes, pairs, codes[pairs].mean(1)


@pytest.mark.truth("the planted pairs, and a loop over rows")
def test_means_of_planted_codes_are_found_again_without_error(planted):
    codes, pairs, rows = planted
    edit = Codes(codes, 2)
    assert torch.equal(edit.chosen(rows).sort(1).values, pairs.sort(1).values)
    torch.testing.assert_close(edit.apply(rows, SITE, CONTEXT), rows)
    used = torch.zeros(8)
    for row in rows:
        used[((row - codes) ** 2).sum(1).argsort()[:2]] += 1
    assert torch.equal(edit.encode(rows).sum(0), used)
    every = Codes(codes, 8).apply(rows, SITE, CONTEXT)
    torch.testing.assert_close(every, codes.mean(0).expand_as(rows))


@pytest.mark.truth("means of the codes by hand")
def test_codes_are_forced_and_blocked(planted):
    codes, pairs, rows = planted
    edit = Codes(codes, 2)
    nearest = edit.chosen(rows)[:, 0]
    forced = edit.activate(5).apply(rows, SITE, CONTEXT)
    torch.testing.assert_close(forced, (codes[nearest] + codes[5]) / 2)
    beside = edit.activate(5, "add").apply(rows, SITE, CONTEXT)
    torch.testing.assert_close(beside, (2 * rows + codes[5]) / 3)
    changed = (edit.without(3).apply(rows, SITE, CONTEXT) - rows).abs().amax(1) > 1e-4
    assert torch.equal(changed, (pairs == 3).any(1))


@pytest.mark.truth("the chain rule by hand")
def test_gradients_pass_straight_to_states_and_to_the_codes_that_were_chosen(planted):
    codes, _, rows = planted
    book, x = codes.clone().requires_grad_(), (rows[:5] + 0.01).requires_grad_()
    weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    used, apart = torch.zeros(8), []
    out = Codebook(n_codes=8, k=2)._quantised(book, used, apart, x)
    index = Codes(codes, 2).chosen(x.detach())
    torch.testing.assert_close(out.detach(), codes[index].mean(1))
    of_x, of_book = torch.autograd.grad((out * weight).sum(), (x, book))
    torch.testing.assert_close(of_x, weight)
    want = torch.zeros(8, 8).index_add_(0, index.flatten(), weight.repeat_interleave(2, 0) / 2)
    torch.testing.assert_close(of_book, want)
    assert torch.equal(used, torch.bincount(index.flatten(), minlength=8).float())


@pytest.fixture(scope="module")
def trained():
    """A net that tells six kinds of rows apart, and a copy of it with codes."""
    kinds = 6.0 * torch.eye(6)

    def batch(step):
        source = torch.Generator().manual_seed(step)
        label = torch.randint(6, (64,), generator=source)
        return kinds[label] + 0.1 * torch.randn(64, 6, generator=source)

    def loss(out, x):
        return cross_entropy(out, torch.cdist(x, kinds).argmin(1))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 6))
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for step in range(150):
        optimiser.zero_grad()
        loss(net(batch(step)), batch(step)).backward()
        optimiser.step()
    before = [p.detach().clone() for p in net.parameters()]
    method = Codebook(n_codes=6, k=1, rate=1e-3, steps=100)
    found = method.fit(net, "1", batch, loss)
    assert all(map(torch.equal, before, net.parameters()))
    return found, kinds, batch, loss


@pytest.mark.truth("six planted kinds: a code for each, and the net run by hand on the code")
def test_each_kind_has_its_code_and_forcing_it_gives_the_answer_of_its_kind(trained):
    found, kinds, batch, _ = trained
    (site,) = found.codes
    codes, module = found.codes[site], found.module
    with torch.no_grad():
        own = codes.chosen(module[:2](kinds))[:, 0]
    assert sorted(own.tolist()) == list(range(6))
    assert found.loss < found.loss_before + 0.05
    assert float(found) == pytest.approx(found.loss - found.loss_before)
    x = batch(-1)
    for kind in range(6):
        forced = codes.activate(int(own[kind]))
        with found.active({site: forced}), torch.no_grad():
            out = module(x)
        want = module[2](codes.codes[own[kind]])
        torch.testing.assert_close(out, want.expand_as(out))
        assert bool((out.argmax(1) == kind).all())


@pytest.mark.truth("the net run by hand on codes, batch by batch")
def test_losses_and_usage_are_those_of_the_batches_after_the_last_step(trained):
    found, _, batch, loss = trained
    (site,) = found.codes
    losses, counts = [], torch.zeros(6)
    for step in range(100, 108):
        x = batch(step)
        with torch.no_grad():
            index = found.codes[site].chosen(found.module[:2](x))[:, 0]
            losses.append(float(loss(found.module[2](found.codes[site].codes[index]), x)))
        counts += torch.bincount(index, minlength=6)
    assert found.loss == pytest.approx(sum(losses) / 8, rel=1e-4)
    torch.testing.assert_close(found.usage[site], counts / counts.sum())


@pytest.mark.truth("codes of each row chosen by hand, and counted")
def test_each_row_uses_two_codes_of_a_book_of_two():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 4))
    rows = torch.randn(40, 6)
    found = Codebook(n_codes=5, k=2, steps=3).fit(
        net, "0", lambda _: rows, lambda out, x: (out - x[:, :4]).square().mean()
    )
    with torch.no_grad():
        index = found.codes["0"].chosen(found.module[0](rows))
    want = torch.bincount(index.flatten(), minlength=5) / 40
    assert found.n == 8 * 40
    assert float(want.sum()) == pytest.approx(2)
    torch.testing.assert_close(found.usage["0"], want)


def test_bad_input_is_refused(planted):
    codes, _, rows = planted
    edit, net = Codes(codes, 2), nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    with pytest.raises(ShapeError, match=r"expected dim=8 \(as trained\), got dim=3"):
        edit.chosen(rows[:, :3])
    with pytest.raises(InputError, match="a code from 0 to 7"):
        edit.activate(8)
    with pytest.raises(InputError, match="that leave 2"):
        edit.without(*range(7))
    with pytest.raises(InputError, match="k from 1 to n_codes"):
        Codebook(n_codes=2, k=3)
    fit = partial(Codebook(n_codes=900, k=1).fit, net)
    with pytest.raises(InputError, match=r"a row for each of 900 codes .*got 800"):
        fit("0", lambda step: rows[:100], lambda out, x: out.mean())
    with pytest.raises(InputError, match="expected the output of a module"):
        fit("0:in", lambda step: rows, lambda out, x: out.mean())
    broken = Codebook(n_codes=4, k=1, steps=1)
    with pytest.raises(InputError, match="expected a finite loss, got nan at step 0"):
        broken.fit(net, "0", lambda step: rows, lambda out, x: out.mean() * torch.nan)
