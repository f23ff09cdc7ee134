import math

import pytest
import torch
from scipy.stats import chi2
from torch import nn

from narrow import expect
from run_case import Stopping
from sonde.core.errors import InputError, ShapeError, StateError
from sonde.core.state import equal
from sonde.core.stream import Stream
from sonde.detect import SimpleNet
from sonde.detect.simple_net import NoiseDiscriminator, NoiseTraining, hinge
from sonde.engine.running import Running
from sonde.run.fitting.fit import fit
from sonde.run.fitting.fitted import Fitted
from sonde.run.passes.driver import Interrupted
from sonde.run.scoring.score import score
from sonde.stats.training_weights import Weights

SMALL = {"steps": 1, "hidden": 32, "batch": 64, "rate": 1e-2}


def _rows(n, dim=4, seed=0):
    """Rows that lie near a plane: the last units follow from the first two."""
    source = torch.Generator().manual_seed(seed)
    plane = torch.randn(2, dim, generator=torch.Generator().manual_seed(99))
    return torch.randn(n, 2, generator=source) @ plane + 0.1 * torch.randn(n, dim, generator=source)


def _learned(detector, x, passes=2):
    """The state after walks over all rows at once."""
    learner = expect(NoiseTraining, detector.reads()["trained"])
    state = learner.start(x.shape[1])
    draw = torch.randint(-(2**62), 2**62, (len(x),), generator=torch.Generator().manual_seed(1))
    for _ in range(passes):
        state = learner.close_pass(learner.update(state, x, draw))
    return learner, state


@pytest.mark.truth("0.3 by hand: 0.5 - 0.2, and nothing for the fake")
def test_loss_of_one_pair():
    assert float(hinge(torch.tensor([0.2]), torch.tensor([-0.9]), 0.5)) == pytest.approx(0.3)
    assert float(hinge(torch.tensor([0.9, 0.1]), torch.tensor([0.0]), 0.5)) == pytest.approx(0.7)


def _network(net: NoiseDiscriminator, dim: int) -> nn.Sequential:
    """The same net from the library's modules, ready for use."""
    weight, bias = net.adapter
    first, offset, scale, shift, last = net.judge
    h = len(offset)
    modules = nn.Sequential(
        nn.Linear(dim, dim),
        nn.Linear(dim, h),
        nn.BatchNorm1d(h),
        nn.LeakyReLU(0.2),
        nn.Linear(h, 1, bias=False),
    )
    given = {
        "0.weight": weight, "0.bias": bias, "1.weight": first, "1.bias": offset,
        "2.weight": scale, "2.bias": shift, "2.running_mean": net.centre,
        "2.running_var": net.spread, "4.weight": last,
    }  # fmt: skip
    modules.load_state_dict(given, strict=False)
    return modules.double().eval()


@pytest.mark.truth("torch.nn modules in eval")
def test_the_score_is_minus_the_answer_of_the_trained_net():
    x, y = _rows(300) * 3 + 50, _rows(40, seed=1) * 3 + 50
    detector = SimpleNet(passes=5, **SMALL)
    _, state = _learned(detector, x, passes=6)
    scale = (y.double() - x.double().mean(0)) / x.double().std(0, correction=0)
    want = -_network(NoiseDiscriminator.of(state.weights), 4)(scale)[:, 0].detach()
    found = detector.result(state).score(y.double())
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)


@pytest.mark.truth("torch.nn.BatchNorm1d fed with usual rows alone")
def test_the_running_centre_is_that_of_usual_rows():
    x = _rows(64)
    detector = SimpleNet(passes=1, steps=1, adapter=False, hidden=8, batch=64)
    learner, before = _learned(detector, x, passes=1)
    _, after = _learned(detector, x, passes=2)
    scaled = (x - x.mean(0)) / x.std(0, correction=0)
    first, offset = NoiseDiscriminator.of(learner.start(4).weights).judge[:2]
    layer = nn.BatchNorm1d(8)
    layer(scaled @ first.T + offset)
    assert before.weights.steps == 0
    torch.testing.assert_close(after.weights.buffers[0], layer.running_mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after.weights.buffers[1], layer.running_var, rtol=1e-4, atol=1e-5)


@pytest.mark.essential
@pytest.mark.truth("the quadric where both Gaussian densities are equal")
def test_the_boundary_is_the_quadric_between_rows_and_noisy_rows():
    source = torch.Generator().manual_seed(0)
    cov = torch.tensor([[1.0, 0.6], [0.6, 1.0]]).double()
    root = torch.linalg.cholesky(cov)
    x = torch.randn(3072, 2, generator=source).double() @ root.T
    detector = SimpleNet(sigma=2.0, adapter=False, hidden=64, passes=15, batch=256, rate=4e-3)
    wide = cov + 4 * torch.eye(2)
    form = torch.linalg.inv(cov) - torch.linalg.inv(wide)
    y = torch.randn(4000, 2, generator=source).double() @ root.T
    unlikely = ((y @ form) * y).sum(1) > torch.logdet(wide) - torch.logdet(cov)
    agreement = ((detector.fit(x).score(y) > 0) == unlikely).double().mean()
    assert float(agreement) >= 0.95


@pytest.mark.essential
@pytest.mark.truth("overlap of the Gaussian densities by scipy.stats.chi2; the order of norms")
@pytest.mark.parametrize(("adapter", "constant"), [(True, 2), (False, 0)])
def test_nothing_gives_the_copies_away(adapter, constant):
    sigma, dim, source = 0.5, 8, torch.Generator().manual_seed(0)
    x, y = torch.randn(2500, dim, generator=source), torch.randn(1000, dim, generator=source)
    plain, far = (nn.functional.pad(rows, (0, constant), value=7.0) for rows in (y, 2 * y.flip(0)))
    x = nn.functional.pad(x, (0, constant), value=7.0)
    rates = {"rate": 1e-2, "adapter_rate": 1e-2, "batch": 128}
    scorer = SimpleNet(sigma=sigma, adapter=adapter, hidden=32, passes=8, **rates).fit(x)
    wide = 1 + sigma**2
    edge = dim * math.log(wide) * wide / sigma**2
    overlap = 1 - (chi2.cdf(edge, dim) - chi2.cdf(edge / wide, dim))
    share = 0.75 if constant else 1.0  # of the copies that differ only in units that vary
    assert scorer.value > 0.95 * share * overlap
    order = torch.cat([plain, far]).norm(dim=1)
    best, found = (
        float((s[1000:, None] > s[:1000]).double().mean())
        for s in (order, scorer.score(torch.cat([plain, far])))
    )
    assert found > best - 0.1


@pytest.mark.truth("counted: a net that sees a constant unit alone knows every fourth copy")
def test_held_out_copies_are_not_given_away_by_constant_units():
    x = torch.cat([_rows(40), torch.full((40, 1), 7.0)], 1)
    detector = SimpleNet(patience=1, adapter=False, margin=0.3, **{**SMALL, "hidden": 2})
    learner, state = _learned(detector, x, passes=1)
    seen = torch.tensor([0.0, 0.0, 0.0, 0.0, 1e6])
    judge = torch.stack([seen, -seen]), torch.zeros(2), torch.ones(2), torch.zeros(2)
    weights = Weights.of(*judge, -torch.ones(1, 2), buffers=(torch.zeros(2), torch.ones(2)))
    rows = torch.cat([torch.randn(20, 4), torch.zeros(20, 1)], 1)
    found = learner.held_loss(state, weights.live(), rows)
    assert float(found.detach()) == pytest.approx(0.3 + 0.75 * 0.3, rel=1e-5)


def _patches(n_images, seed):
    """Images of 3 x 3 patches of 8 units on a plane."""
    return _rows(n_images * 9, 8, seed).reshape(n_images, 9, 8)


@pytest.mark.slow
@pytest.mark.truth("AUROC of permuted units, by counting pairs; PatchCore has 1.0")
def test_two_hundred_images_are_enough_at_the_defaults():
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(8, 32, generator=draw)

    def images(n):
        kind = torch.randint(8, (n,), generator=draw)
        return centres[kind] + 0.1 * torch.randn(n, 32, generator=draw)

    x, usual, odd = images(200), images(150), images(150)[:, torch.randperm(32, generator=draw)]
    net = SimpleNet(passes=4)
    learner, state = _learned(net, x, passes=5)
    assert learner.is_trained(state)
    assert 500 <= state.weights.steps < 504
    scorer = net.result(state)
    found, wrong = (s.score(torch.cat([usual, odd])) for s in (scorer, SimpleNet(steps=1).fit(x)))
    assert _area(found, 150) > 0.99
    assert _area(wrong, 150) < 0.95  # 40 steps


def _area(scores, n):
    return float((scores[n:, None] > scores[:n]).double().mean())


def test_few_rows_are_walked_over_more_often_and_many_are_not():
    many = SimpleNet(passes=3, steps=5, hidden=8, batch=16).fit(_rows(160))
    assert many.conventions["steps"] == 3 * 10
    few = SimpleNet(passes=3, steps=20, hidden=8, batch=16).fit(_rows(40))
    assert few.conventions["steps"] == 24  # 2 steps in 3 walks: 4 times over


@pytest.mark.slow
def test_an_odd_patch_is_found():
    detector = SimpleNet(passes=20, hidden=32, batch=128, rate=2e-2)
    scorer = detector.fit(_patches(80, 0).flatten(0, 1))
    images = _patches(30, 1)
    where = torch.arange(30) % 9
    units = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    odd = images[torch.arange(30), where][:, units]  # the same numbers, at the wrong units
    images[torch.arange(30), where] = odd
    scores = scorer.score(images.flatten(0, 1)).reshape(30, 9)
    assert float((scores.argmax(1) == where).double().mean()) >= 0.9
    each_unit = ((images - _patches(120, 0).flatten(0, 1).mean(0)).abs()).amax(2)
    assert float((each_unit.argmax(1) == where).double().mean()) < 0.5  # no unit alone shows it


def test_the_seed_alone_decides():
    x = _rows(200)
    torch.manual_seed(1)
    first = SimpleNet(passes=3, **SMALL).fit(x)
    torch.manual_seed(2)
    again, other = (SimpleNet(passes=3, **SMALL, seed=s).fit(x) for s in (0, 1))
    assert torch.equal(first.score(x), again.score(x))
    assert not torch.equal(first.score(x), other.score(x))


def test_a_score_does_not_depend_on_the_batch():
    x, y = _rows(200), _rows(50, seed=1).double()
    scorer = SimpleNet(passes=3, **SMALL).fit(x)
    single = torch.cat([scorer.score(row[None]) for row in y])
    torch.testing.assert_close(single, scorer.score(y), rtol=1e-9, atol=1e-9)


def test_training_stops_by_usual_rows_alone_and_keeps_the_best_net():
    x = _rows(400)
    draw = torch.randint(-(2**62), 2**62, (400,), generator=torch.Generator().manual_seed(1))
    detector = SimpleNet(passes=200, patience=3, **SMALL)
    learner = expect(NoiseTraining, detector.reads()["trained"])
    state, nets, losses = learner.start(4), [], []
    state = learner.close_pass(learner.update(state, x, draw))
    while not learner.is_trained(state):
        state = learner.update(state, x, draw)
        nets.append(state.weights)
        losses.append(state.held.average)
        state = learner.close_pass(state)
    best = min(range(len(losses)), key=losses.__getitem__)
    assert len(losses) == best + 1 + 3 < 200
    assert state.best_loss == losses[best]
    assert equal(state.best, nets[best])
    result = detector.result(state)
    assert (result.value, result.conventions["passes"]) == (losses[best], len(losses))


@pytest.mark.parametrize("adapter", [True, False])
def test_constant_units_neither_hide_nor_blow_up(adapter):
    x = torch.cat([_rows(300), torch.full((300, 1), 7.0)], 1)
    scorer = SimpleNet(passes=12, adapter=adapter, **SMALL).fit(x)
    moved = x[:50].clone()
    moved[:, 4] += 5
    assert float(scorer.score(moved).median()) > float(scorer.score(x).quantile(0.9))
    assert SimpleNet(passes=2, **SMALL).fit(torch.ones(9, 3)).flags == ("dead",)


def test_rows_that_are_not_finite_are_left_out_and_score_infinity():
    x = _rows(100)
    broken = torch.cat([x, torch.full((1, 4), math.nan)])
    a, b = (SimpleNet(passes=2, **SMALL).fit(v) for v in (x, broken))
    assert (a.n, b.n) == (100, 100)
    assert torch.equal(b.score(broken)[:100], a.score(x))
    assert float(b.score(broken)[100]) == math.inf


def _by_fit(directory, source, **options):
    detector = SimpleNet(passes=3, **SMALL)
    return fit(detector, source, directory=directory, unit_size=64, progress=False, **options)


@pytest.mark.slow
def test_a_run_is_calibrated_saved_and_resumed_with_the_same_bits(tmp_path):
    source = Stream.of(_rows(320))
    whole = _by_fit(None, source)
    with pytest.raises(Interrupted):
        _by_fit(tmp_path / "a.run", Stopping(source, after=5 + 2 * 5 + 3))
    again = _by_fit(tmp_path / "a.run", source)
    assert again.save(tmp_path / "a.sonde") == whole.save(tmp_path / "b.sonde")
    loaded = Fitted.load(tmp_path / "a.sonde")
    fresh = Stream.of(_rows(300, seed=5))
    table = score(loaded, fresh, progress=False)
    assert table == score(whole, fresh, progress=False)
    alarms = sum(p <= 0.1 for p in table["p"].to_pylist()) / 300
    assert 0.01 < alarms < 0.25
    with pytest.raises(StateError, match="cannot be merged"):
        whole.merge(_by_fit(None, fresh))


@pytest.mark.parametrize("bad", [{"sigma": 0.0}, {"passes": 0}, {"batch": 1}, {"patience": -1}])
def test_parameters_out_of_range_are_refused(bad):
    with pytest.raises(InputError, match="SimpleNet: expected sigma, margin"):
        SimpleNet(**bad)


def test_errors_say_what_to_do():
    with pytest.raises(StateError, match="expected at least 2 rows to train on, got 1 row"):
        SimpleNet(passes=2).fit(_rows(1))
    with pytest.raises(InputError, match=r"about one group in 10 .*got 0 of 3 rows"):
        SimpleNet(passes=2, patience=1).fit(_rows(3), group=["a"] * 3)
    with pytest.raises(ShapeError, match=r"SimpleNet.score: expected dim=4 \(as fitted\)"):
        SimpleNet(passes=2, **SMALL).fit(_rows(9)).score(torch.zeros(1, 3))
    running = Running(SimpleNet(passes=2, **SMALL))
    running.update(_rows(9))
    with pytest.raises(StateError, match="sees each row only once"):
        running.result()
    with pytest.raises(StateError, match="training diverged"):
        SimpleNet(passes=5, hidden=8, batch=4, rate=1e30, adapter_rate=1e30).fit(_rows(16))
