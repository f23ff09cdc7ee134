import math

import numpy as np
import pytest
import torch
from scipy.special import erf
from sklearn.metrics import roc_auc_score

from narrow import expect
from run_case import Stopping
from sonde.core.errors import InputError, ShapeError, StateError
from sonde.core.stream import Stream
from sonde.detect import DictLookup
from sonde.detect._lookup import Generators, retrieval, starting_weights
from sonde.detect.dict_lookup import HINGE, MARGIN, LookupTraining, scrambled
from sonde.engine.running import Running
from sonde.run.fitting.fit import fit
from sonde.run.fitting.fitted import Fitted
from sonde.run.passes.driver import Interrupted
from sonde.run.scoring.score import score

SMALL = {"generators": "trained", "hidden": 16, "passes": 3, "batch": 64}


def _rows(n, seed=0, dim=8):
    """Patches whose units go together by twos."""
    source = torch.Generator().manual_seed(seed)
    each = torch.rand(n, dim // 2, generator=source)
    return each.repeat_interleave(2, 1) + 0.02 * torch.randn(n, dim, generator=source)


def _unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _weights(z):
    """Sparsemax of one row, its threshold by bisection."""
    low, high = z.min() - 1, z.max()
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(z - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(z - low, 0)


def _map(x, weights):
    """One generator on unit rows."""
    first, second = weights
    wide = x * math.sqrt(x.shape[-1])
    hidden = wide @ first.T
    return _unit(wide + hidden * (1 + erf(hidden / math.sqrt(2))) / 2 @ second.T)


def _misfit(maps, x, bank, temperature=0.05):
    """Score of each unit row, one after the other."""
    q, k, v = maps
    found: list[float] = []
    keys, values = _map(bank, k), _map(bank, v)
    for row in x:
        r = _weights(keys @ _map(row, q) / temperature) @ values
        found.append((1 - _map(row, v) @ _unit(r)) / 2)
    return np.array(found)


def _of(values):
    """The three maps of a tuple of weights."""
    w = [t.double().numpy() for t in values]
    return [(w[i], w[i + 1]) for i in (0, 2, 4)]


def _trained(detector, x, group, passes):
    """The state after walks over all rows at once."""
    learner = expect(LookupTraining, detector.reads()["trained"])
    state = learner.start(x.shape[1])
    draw = torch.arange(len(x)) * 7919
    for _ in range(passes):
        state = learner.close_pass(learner.update(state, x, draw, group, group))
    return learner, state


@pytest.mark.truth("numpy, a row at a time")
@pytest.mark.parametrize("bank", ["sample", "coreset"])
def test_the_score_is_that_of_the_trained_maps(bank):
    x, new = _rows(60), _rows(9, 1).double()
    scorer = DictLookup(bank=bank, **{**SMALL, "rate": 3e-2}).fit(x)
    maps = _of(scorer.generators.weights)
    assert min(float(np.abs(second).max()) for _, second in maps) > 0.01
    assert len(scorer.bank) == 60
    want = _misfit(maps, _unit(new.numpy()), scorer.bank.double().numpy())
    np.testing.assert_allclose(scorer.score(new).double().numpy(), want, atol=1e-6)


@pytest.mark.truth("the lookup without generators")
def test_before_the_first_step_the_maps_change_nothing():
    x, new = _rows(60).double(), _rows(9, 1).double()
    start = Generators(starting_weights(8, 16, 0).values)
    for which in range(3):
        torch.testing.assert_close(start(which, x / x.norm(dim=1, keepdim=True)) * x.norm(
            dim=1, keepdim=True), x)  # fmt: skip
    still = DictLookup(**{**SMALL, "rate": 1e-30}).fit(x)
    torch.testing.assert_close(still.score(new), DictLookup().fit(x).score(new))


@pytest.mark.truth("numpy over the allowed entries alone")
@pytest.mark.parametrize("temperature", [1e-3, 0.05, 50.0])
def test_what_is_not_allowed_gets_nothing(temperature):
    source = np.random.default_rng(0)
    query, keys = (_unit(source.normal(size=(n, 4))) for n in (5, 12))
    allowed = source.random((5, 12)) < 0.5
    allowed[:, 0] = True
    allowed[0] = keys @ query[0] < 0
    q, k, may = (torch.from_numpy(a) for a in (query, keys, allowed))
    found = retrieval(q, k, temperature, may).numpy()
    for i in range(5):
        want = np.zeros(12)
        want[allowed[i]] = _weights(keys[allowed[i]] @ query[i] / temperature)
        np.testing.assert_allclose(found[i], want, atol=1e-9)


@pytest.mark.truth("0.5: what is orthogonal to all of the other images; 0: the same patch there")
def test_a_patch_is_not_looked_up_in_its_own_image():
    x, alone = torch.eye(6), torch.arange(6)
    detector = DictLookup(**{**SMALL, "rate": 1e-30})
    _, state = _trained(detector, x, alone, 4)
    assert state.losses[0].average == pytest.approx(0.5, abs=1e-6)
    _, state = _trained(detector, x.repeat(2, 1), torch.arange(12), 4)
    assert state.losses[0].average == pytest.approx(0.0, abs=1e-6)


@pytest.mark.truth(
    "batches of one patch: the one patch drawn to look it up in is of its image or not"
)
def test_a_batch_without_patches_of_other_images_is_left_out():
    x, group = torch.eye(8), torch.arange(8) // 4
    detector = DictLookup(**{**SMALL, "batch": 1, "rate": 1e-30})
    _, state = _trained(detector, x, group, 4)
    assert 0 < state.losses[0].n < 3 * 8
    assert state.losses[0].average == pytest.approx(0.5, abs=1e-6)


@pytest.mark.truth("slopes of the loss in numpy, by finite differences")
def test_a_step_goes_down_the_loss():
    x, group = _rows(24), torch.arange(24)
    detector = DictLookup(**{**SMALL, "passes": 2, "batch": 64, "rate": 1e-3})
    learner, before = _trained(detector, x, group, 2)
    after = learner.update(before, x, group * 7919, group, group)
    x = x / x.norm(dim=1, keepdim=True)
    fakes, share = _last_fakes(detector, before, x)

    def loss(values):
        maps = _of(values)
        usual, odd = (
            2 * np.array([
                _misfit(maps, rows[i : i + 1].double().numpy(), others(i))[0] for i in range(24)
            ]) for rows in (x, fakes)
        )  # fmt: skip
        gap = np.maximum(2 * MARGIN * share.double().numpy() + usual.mean() - odd, 0)
        return usual.mean() + HINGE * gap.mean()

    def others(i):
        return x[torch.arange(24) != i].double().numpy()

    source, checked = np.random.default_rng(0), 0
    for which, weight in enumerate(before.weights.values):
        moved = (after.weights.mean[which] - 0.9 * before.weights.mean[which]) / 0.1
        for at in source.integers(weight.numel(), size=2):
            values = [v.double() for v in before.weights.values]
            slope = []
            for step in (1e-5, -1e-5):
                changed = values[which].flatten().clone()
                changed[at] += step
                slope.append(
                    loss([*values[:which], changed.view(weight.shape), *values[which + 1 :]])
                )
            slope = (slope[0] - slope[1]) / 2e-5
            assert float(moved.flatten()[at]) == pytest.approx(slope, abs=2e-6, rel=0.02)
            checked += abs(slope) > 1e-5
    assert checked > 4


def _last_fakes(detector, state, x):
    """The scrambled patches of the next step, in the order of ``x``."""
    from sonde.stats.training import generator, minibatches

    steps = state.weights.steps
    (order,) = minibatches(len(x), detector.batch, generator("order", detector.seed, steps))
    source = generator("scrambled", detector.seed, steps)
    torch.randperm(len(x), generator=source)
    fakes, share = scrambled(x[order], source)
    back = order.argsort()
    return fakes[back], share[back]


@pytest.mark.truth("columns that are permuted apart: the same values in each, lined up no more")
def test_scrambled_patches_have_usual_units_that_do_not_go_together():
    x = torch.linspace(-1, 1, 4000)[:, None].repeat(1, 3)
    found, share = scrambled(x / x.norm(dim=1, keepdim=True), torch.Generator().manual_seed(0))
    assert 0 < float(share.min()) < 0.01 < 0.99 < float(share.max()) < 1
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4000))
    little, much = share < 0.05, share > 0.8
    alike = (found.sign() == found[:, :1].sign()).all(1)
    assert float(alike[little].double().mean()) > 0.9
    assert 0.15 < float(alike[much].double().mean()) < 0.4  # 1/4: all three signs the same


@pytest.mark.essential
@pytest.mark.truth("the planted pairs of units, by ranks")
def test_what_does_not_go_together_is_retrieved_less_than_before_and_the_usual_still_is():
    x, group = _rows(256), torch.arange(256) // 8
    source = torch.Generator().manual_seed(2)
    usual, apart = _rows(300, 1), torch.rand(300, 8, generator=source)
    blend = torch.lerp(usual, apart, torch.rand(300, 1, generator=source))
    options = {"hidden": 64, "passes": 40, "batch": 256, "rate": 3e-3}
    plain = DictLookup().fit(x)
    taught = DictLookup(generators="trained", **options).fit(x, group=group)
    before, after = ([s.score(v) for v in (usual, apart, blend)] for s in (plain, taught))
    assert float(after[1].mean()) > 3 * float(before[1].mean())
    assert float(after[0].mean()) < 0.01 < 0.1 < float(after[1].mean())
    odd = torch.cat([torch.zeros(300), torch.ones(300)])
    aurocs = [roc_auc_score(odd, torch.cat([found[0], found[2]])) for found in (before, after)]
    assert aurocs[0] < 0.88 < 0.92 < aurocs[1]
    seen = taught.conventions
    last = seen["the same for scrambled patches"], seen["mean score of normal patches in training"]
    assert last[0] > 8 * last[1]


def test_the_seed_alone_decides():
    x = _rows(100)
    torch.manual_seed(1)
    first = DictLookup(**SMALL).fit(x)
    torch.manual_seed(2)
    again, other = (DictLookup(**SMALL, seed=s).fit(x) for s in (0, 1))
    assert torch.equal(first.score(x), again.score(x))
    assert not torch.equal(first.score(x), other.score(x))


@pytest.mark.truth("a lookup that was fitted on the other dictionary")
def test_what_was_learned_serves_another_dictionary():
    x, few, new = _rows(100).double(), _rows(9, 3).double(), _rows(20, 4).double()
    plain = DictLookup().fit(x).over(few)
    torch.testing.assert_close(plain.score(new), DictLookup().fit(few).score(new))
    single = (1 - torch.cosine_similarity(new, few[:1])) / 2
    torch.testing.assert_close(plain.over(few[:1]).score(new), single)
    taught = DictLookup(**{**SMALL, "rate": 3e-2}).fit(x)
    moved = taught.over(few)
    assert (moved.value, moved.n, moved.flags) == (9.0, 9, ())
    maps = _of(taught.generators.weights)
    want = _misfit(maps, _unit(new.numpy()), _unit(few.numpy()))
    np.testing.assert_allclose(moved.score(new).double().numpy(), want, atol=1e-6)
    assert not torch.allclose(moved.score(new), plain.score(new).to(moved.bank), atol=1e-4)


@pytest.mark.slow
def test_a_run_is_calibrated_saved_and_resumed_with_the_same_bits(tmp_path):
    source, detector = Stream.of(_rows(320)), DictLookup(**SMALL)

    def run(directory, stream):
        return fit(detector, stream, directory=directory, unit_size=64, progress=False)

    whole = run(None, source)
    with pytest.raises(Interrupted):
        run(tmp_path / "a.run", Stopping(source, after=5 + 2 * 5 + 3))
    again = run(tmp_path / "a.run", source)
    assert again.save(tmp_path / "a.sonde") == whole.save(tmp_path / "b.sonde")
    loaded, fresh = Fitted.load(tmp_path / "a.sonde"), Stream.of(_rows(300, 5))
    table = score(loaded, fresh, progress=False)
    assert table == score(whole, fresh, progress=False)
    alarms = sum(p <= 0.1 for p in table["p"].to_pylist()) / 300
    assert 0.01 < alarms < 0.25
    with pytest.raises(StateError, match="cannot be merged"):
        whole.merge(run(None, fresh))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"window": 2}, "window 1 or 3, got 2"),
        ({"passes": 0}, "passes of at least 1, got 0"),
        ({"rate": math.inf}, r"rate in \(0, inf\), got inf"),
    ],
)
def test_parameters_out_of_range_are_refused(bad, message):
    with pytest.raises(InputError, match=message):
        DictLookup(**bad)


def test_errors_say_what_to_do():
    with pytest.raises(InputError, match=r"at least 2 images \(groups\), got 1: in training"):
        DictLookup(**SMALL).fit(_rows(9), group=["one"] * 9)
    running = Running(DictLookup(**SMALL))
    running.update(_rows(9))
    with pytest.raises(StateError, match=r"got a net after 0 epochs.*sees each row only once"):
        running.result()
    with pytest.raises(StateError, match="training diverged"):
        DictLookup(**{**SMALL, "rate": 1e38}).fit(_rows(200))
    scorer = DictLookup(**SMALL).fit(_rows(20))
    with pytest.raises(ShapeError, match="expected dim=8"):
        scorer.over(torch.zeros(2, 4))
    with pytest.raises(InputError, match="at least 1 patch and only finite patches, got 1"):
        scorer.over(torch.full((1, 8), math.nan))
    with pytest.raises(InputError, match="at least 1 patch and only finite patches, got 0"):
        scorer.over(torch.zeros(0, 8))


def test_rows_that_are_not_finite_are_left_out_and_score_infinity():
    x = _rows(50)
    broken = torch.cat([x, torch.full((1, 8), math.nan)])
    a, b = (DictLookup(**SMALL).fit(rows) for rows in (x, broken))
    assert torch.equal(a.score(x), b.score(x))
    assert float(b.score(broken)[50]) == math.inf
