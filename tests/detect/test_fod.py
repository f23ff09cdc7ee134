import math
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import roc_auc_score

from narrow import expect
from sonde.core.errors import InputError, ShapeError, StateError
from sonde.core.stream import Stream
from sonde.detect import FOD
from sonde.detect._grid_net import (
    GridNet,
    grid_gaussian,
    row_entropy,
    squared_distances,
    symmetric_kl,
    widths,
)
from sonde.detect.fod import GridTraining, Usual, grid_columns, whole_images
from sonde.engine.running import Running
from sonde.run.fitting.fit import fit
from sonde.run.fitting.fitted import Fitted
from sonde.run.scoring.score import score
from sonde.stats.training_weights import Weights

TINY = {"width": 8, "heads": 2, "layers": 1, "passes": 2, "batch": 8, "rate": 1e-2}
PLACES = 16


def _images(n, seed, noise=0.4):
    """Images of 4 x 4 patches of 8 units, each place with a look of its own."""
    look = torch.randn(PLACES, 8, generator=torch.Generator().manual_seed(7))
    return look + noise * torch.randn(n, PLACES, 8, generator=torch.Generator().manual_seed(seed))


def _columns(n, places=PLACES):
    which, position = torch.arange(n).repeat_interleave(places), torch.arange(places).repeat(n)
    return torch.stack([which, which], 1), which * 0, position


def _fit(detector, images):
    n, places = images.shape[:2]
    ids, _, position = _columns(n, places)
    return detector.fit(images.flatten(0, 1), ids=ids[:, 0], position=position)


def _score(scorer, images, method="score"):
    return getattr(scorer, method)(images.flatten(0, 1), *_columns(*images.shape[:2]))


@pytest.fixture(scope="module")
def tiny():
    return _fit(FOD(**TINY), _images(24, 0))


@pytest.mark.truth("3^(sigmoid(5 a) + 1e-5) - 1 in Python floats")
def test_widths_of_targets():
    found = widths(torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([0.73206984, 1.97805507, 0.00739101], abs=1e-8)
    want = [3 ** (1 / (1 + math.exp(-5 * a)) + 1e-5) - 1 for a in (0.3, -4.0, 9.0)]
    assert widths(torch.tensor([0.3, -4.0, 9.0]).double()).tolist() == pytest.approx(want, rel=1e-6)


@pytest.mark.truth("printed to six digits, and one entry after the other")
def test_targets_on_a_grid():
    one = torch.ones(9, dtype=torch.float64)
    found = grid_gaussian(one, one, squared_distances(9, 3).double())
    side, corner = 0.123841, 0.075114
    centre = [corner, side, corner, side, 0.204180, side, corner, side, corner]
    assert found[4].tolist() == pytest.approx(centre, abs=1e-6)
    first = [
        0.329587, 0.199905, 0.044605, 0.199905, 0.121248, 0.027054, 0.044605, 0.027054, 0.006037,
    ]  # fmt: skip
    assert found[0].tolist() == pytest.approx(first, abs=1e-6)
    uniform = torch.full((9,), 1 / 9, dtype=torch.float64)
    assert float(symmetric_kl(uniform, found[4])) == pytest.approx(0.11852943, abs=1e-8)
    down, across = torch.rand(2, 6, generator=torch.Generator().manual_seed(0)).double() + 0.3
    wide = grid_gaussian(down, across, squared_distances(6, 3).double())
    for i in range(6):
        gaps = [((j // 3 - i // 3) / down[i], (j % 3 - i % 3) / across[i]) for j in range(6)]
        raw = torch.tensor([math.exp(-(dy**2 + dx**2) / 2) for dy, dx in gaps]).double()
        torch.testing.assert_close(wide[i], raw / raw.sum())


@pytest.mark.truth("log 4 and 0")
def test_entropy_of_shares():
    shares = torch.tensor([[0.25] * 4, [1.0, 0.0, 0.0, 0.0]])
    assert row_entropy(shares).tolist() == pytest.approx([math.log(4), 0.0], abs=1e-6)


@pytest.mark.truth("torch.nn.functional.scaled_dot_product_attention; rows that sum to 1")
def test_the_net_attends_to_its_image_and_to_the_references():
    net, x, reference = GridNet(8, 2, 2), torch.randn(3, 6, 5), torch.randn(6, 5)
    values = [v + 0.2 * torch.randn_like(v) for v in net.start(5, 0).values]
    found = net(values, x, reference, 3)
    assert found.x.shape == x.shape
    for c in (*found.intra, *found.inter):
        for shares in (c.attention, c.target):
            assert shares.shape == (3, 2, 6, 6)
            torch.testing.assert_close(shares.sum(-1), torch.ones(3, 2, 6))
    w = dict(zip(net.names(5), values, strict=True))

    def linear(source, name):
        return source @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def heads(source, name):
        return linear(source, name).expand(3, 6, 8).unflatten(-1, (2, 4)).transpose(-2, -3)

    def attend(source, name, mixed=None):
        keys, own = heads(source, f"{name}.key"), heads(source, f"{name}.value")
        return torch.nn.functional.scaled_dot_product_attention(
            heads(tokens, f"{name}.query"), keys, own if mixed is None else mixed
        )

    def out(source, name):
        return linear(attend(source, name).transpose(1, 2).flatten(2), f"{name}.out")

    def norm(x, name):
        return torch.nn.functional.layer_norm(x, (8,), w[f"{name}.weight"], w[f"{name}.bias"])

    tokens, usual = linear(x, "embed"), linear(reference, "embed")
    everything = torch.eye(6).expand(3, 2, 6, 6)
    for k in range(2):
        at = f"layers.{k}"
        for source, name, seen in ((tokens, "intra", found.intra), (usual, "inter", found.inter)):
            attention = attend(source, f"{at}.{name}", everything)
            torch.testing.assert_close(seen[k].attention, attention, rtol=1e-4, atol=1e-5)
        tokens = tokens + out(tokens, f"{at}.intra") + out(usual, f"{at}.inter")
        tokens = norm(tokens, f"{at}.norm")
        hidden = torch.nn.functional.gelu(linear(tokens, f"{at}.first"))
        tokens = norm(tokens + linear(hidden, f"{at}.second"), f"{at}.last_norm")
    torch.testing.assert_close(found.x, linear(tokens, "rebuild"), rtol=1e-4, atol=1e-4)


@pytest.mark.truth("entropies by torch.distributions; the terms of both phases cancel in the value")
def test_the_loss_wants_wide_attention_to_the_image_and_narrow_to_the_references():
    torch.manual_seed(0)
    learner = expect(GridTraining, FOD(**TINY, entropy=0.7, columns=8).reads()["trained"])
    (ids, _, position), state = _columns(4), learner.start(8)
    state = learner.survey(state, _images(4, 0).flatten(0, 1), ids, ids[:, 0] * 0, position)
    values = [v + 0.2 * torch.randn_like(v) for v in state.weights.values]
    state = replace(state, weights=Weights.of(*values))
    images, usual = torch.randn(3, PLACES, 8), Usual.of(state.places).reference.float()
    loss, (error,) = learner.loss(state, state.weights.live(), images)
    found = learner.net(values, images, usual, 8)
    spread = [
        float(torch.distributions.Categorical(probs=layer.attention).entropy().mean())
        for layer in (found.inter[0], found.intra[0])
    ]
    assert abs(spread[0] - spread[1]) > 0.01
    want = 2 * float(error.detach().mean()) + 0.7 * (spread[0] - spread[1])
    assert float(loss.detach()) == pytest.approx(want, abs=1e-4)


@pytest.mark.truth("numpy over all patches at once")
def test_what_is_usual_comes_from_all_images(tiny):
    images = _images(24, 0).double().numpy()
    flat = images.reshape(-1, 8)
    torch.testing.assert_close(tiny.usual.mean, torch.from_numpy(flat.mean(0)))
    torch.testing.assert_close(tiny.usual.spread, torch.from_numpy(flat.std(0)))
    want = (images.mean(0) - flat.mean(0)) / flat.std(0)
    torch.testing.assert_close(tiny.usual.reference, torch.from_numpy(want))
    assert isinstance(tiny.usual, Usual)


@pytest.mark.truth("the formula on the terms, image by image")
@pytest.mark.parametrize("relative", [True, False])
def test_the_score_is_error_times_displacement(relative):
    scorer = _fit(FOD(relative=relative, **TINY), _images(24, 0))
    images = _images(5, 1)
    error, gap = (t.reshape(5, PLACES) for t in _score(scorer, images, "terms"))
    weight = gap
    if relative:
        q = (-gap).exp() / (-gap).exp().sum(1, keepdim=True)
        weight = q.max(1, keepdim=True).values - q
    found = _score(scorer, images).reshape(5, PLACES)
    torch.testing.assert_close(found, error * weight, rtol=1e-4, atol=1e-6)


def _displaced(n, seed):
    """Usual images, in each of which one patch is the usual one of another place."""
    images, each = _images(n, seed), torch.arange(n)
    at = each % PLACES
    images[each, at] = _images(n, seed + 1)[each, (at + 7) % PLACES]
    odd = torch.zeros(n, PLACES)
    odd[each, at] = 1
    return images, odd


@pytest.mark.essential
@pytest.mark.truth("patches that were moved, by ranks")
def test_a_displaced_patch_is_found_that_reconstruction_misses():
    detector = FOD(width=16, heads=2, layers=1, passes=15, batch=8, rate=1e-2, relative=False)
    scorer = _fit(detector, _images(40, 0))
    images, odd = _displaced(40, 3)
    error, gap = _score(scorer, images, "terms")
    auroc = {
        name: roc_auc_score(odd.flatten(), values)
        for name, values in (("error", error), ("gap", gap), ("score", _score(scorer, images)))
    }
    assert auroc["error"] < 0.65
    assert auroc["gap"] > 0.9
    assert auroc["score"] > auroc["error"] + 0.15
    hit = gap.reshape(40, PLACES).argmax(1) == odd.argmax(1)
    assert float(hit.double().mean()) > 0.6


def test_a_patch_that_looks_like_nothing_is_found_by_its_error(tiny):
    images = _images(10, 1)
    images[:, 5] = 20.0
    error, _ = _score(tiny, images, "terms")
    assert bool((error.reshape(10, PLACES).argmax(1) == 5).all())


def test_an_image_is_scored_whatever_comes_with_it_and_in_whatever_order(tiny):
    images = _images(4, 1).double()
    whole = _score(tiny, images)
    single = torch.cat([_score(tiny, image[None]) for image in images])
    torch.testing.assert_close(single, whole, rtol=1e-9, atol=1e-9)
    order = torch.randperm(4 * PLACES, generator=torch.Generator().manual_seed(0))
    ids, occurrence, position = (c[order] for c in _columns(4))
    mixed = tiny.score(images.flatten(0, 1)[order], ids, occurrence, position)
    torch.testing.assert_close(mixed, whole[order], rtol=1e-9, atol=1e-9)


def test_equal_images_are_told_apart_by_their_occurrence(tiny):
    image = _images(1, 1).double()
    ids, occurrence, position = _columns(2)
    twice = tiny.score(image.repeat(2, 1, 1).flatten(0, 1), ids * 0, ids[:, 0], position)
    torch.testing.assert_close(twice, _score(tiny, image).repeat(2), rtol=1e-9, atol=1e-9)
    assert occurrence.unique().tolist() == [0]


def test_a_patch_that_is_not_finite_scores_infinity_and_no_other_does(tiny):
    images = _images(3, 1)
    images[1, 4] = math.nan
    found = _score(tiny, images).reshape(3, PLACES)
    assert float(found[1, 4]) == math.inf
    assert int(torch.isfinite(found).sum()) == 3 * PLACES - 1


def test_the_seed_alone_decides():
    images = _images(16, 0)
    torch.manual_seed(1)
    first = _fit(FOD(**TINY), images)
    torch.manual_seed(2)
    again, other = (_fit(FOD(**TINY, seed=s), images) for s in (0, 1))
    assert torch.equal(_score(first, images), _score(again, images))
    assert not torch.equal(_score(first, images), _score(other, images))


def test_whole_images_are_put_in_order():
    who = torch.tensor([[1, 1, 0], [2, 2, 0], [1, 1, 0], [2, 2, 0], [3, 3, 0], [1, 1, 1]])
    rows, partial = whole_images(who, torch.tensor([1, 0, 0, 1, 0, 9]), 2)
    assert rows.tolist() == [[2, 0], [1, 3]]
    assert partial.tolist() == [1, 1]


def _stream(n, seed):
    ids, _, position = _columns(n)
    names = [f"{seed}-{i}" for i in ids[:, 0].tolist()]
    return Stream.of(_images(n, seed).flatten(0, 1), ids=names, position=position)


@pytest.mark.slow
def test_a_run_is_calibrated_on_whole_images_and_saved(tmp_path):
    fitted = fit(FOD(**TINY), _stream(60, 0), unit_size=5 * PLACES, progress=False)
    fitted.save(tmp_path / "a.sonde")
    loaded = Fitted.load(tmp_path / "a.sonde")
    scorer = loaded.result(FOD)
    held = scorer.calibration.n
    assert 4 <= held <= 25
    assert scorer.scorer.conventions["images"] == 60 - held
    table = score(loaded, _stream(20, 1), progress=False)
    assert table.num_rows == 20
    assert all(0 < p <= 1 for p in table["p"].to_pylist())
    rows = score(loaded, _stream(20, 1), reduction="rows", progress=False)
    assert rows.num_rows == 20 * PLACES
    found = torch.tensor(rows["score"].to_pylist()).reshape(20, PLACES).amax(1)
    assert found.tolist() == pytest.approx(table["score"].to_pylist())


def test_rows_are_scored_but_not_calibrated():
    with pytest.raises(InputError, match="FOD: expected a score for each example to calibrate"):
        fit(FOD(**TINY), _stream(9, 0), reduction="rows", progress=False)
    fitted = fit(FOD(**TINY), _stream(9, 0), calibrate=0, progress=False)
    table = score(fitted, _stream(2, 1), reduction="rows", progress=False)
    assert table.num_rows == 2 * PLACES
    assert table["p"].null_count == 2 * PLACES


def test_grids_need_not_be_square():
    images = _images(30, 0)[:, :12]
    with pytest.raises(InputError, match=r"square number of patches .*got 12 positions.*columns="):
        _fit(FOD(**TINY), images)
    scorer = _fit(FOD(columns=4, **TINY), images)
    assert scorer.columns == 4
    assert [scorer.conventions[k] for k in ("images", "images left out")] == [30, 0]
    with pytest.raises(InputError, match="expected lines of 5 patches in an image, got 12"):
        _fit(FOD(columns=5, **TINY), images)
    assert [grid_columns(2, 1), grid_columns(2, 2), grid_columns(9, None)] == [1, 2, 3]


def test_images_of_several_sizes_are_refused():
    large, small = _images(8, 0), _images(8, 1)[:, :4]
    ids, _, position = _columns(8)
    less, _, there = _columns(8, 4)
    with pytest.raises(InputError, match=r"expected 16 patches of every image, but 8 of"):
        FOD(**TINY).fit(
            torch.cat([large.flatten(0, 1), small.flatten(0, 1)]),
            ids=torch.cat([ids[:, 0], less[:, 0] + 100]),
            position=torch.cat([position, there]),
        )


def test_one_row_for_each_image_is_refused():
    with pytest.raises(InputError, match=r"at least 2 patches in an image, got one row for each"):
        FOD(**TINY).fit(torch.randn(32, 4))


@pytest.mark.parametrize("bad", [{"heads": 3}, {"passes": 0}, {"rate": 0.0}, {"divergence": -1.0}])
def test_parameters_out_of_range_are_refused(bad):
    with pytest.raises(InputError, match="FOD: expected width, heads"):
        FOD(**{"width": 8, "heads": 2, **bad})


def test_errors_say_what_to_do(tiny):
    with pytest.raises(ShapeError, match=r"expected 16 patches of every image .*got 9 in an image"):
        _score(tiny, _images(1, 0)[:, :9])
    with pytest.raises(ShapeError, match=r"expected 16 patches of every image .*got 1 in an image"):
        _score(tiny, _images(1, 0)[:, :1])
    assert _score(tiny, _images(0, 0)).shape == (0,)
    with pytest.raises(ShapeError, match=r"FOD.score: expected dim=8 \(as fitted\)"):
        _score(tiny, torch.zeros(1, PLACES, 3))
    running = Running(FOD(**TINY))
    ids, _, position = _columns(4)
    running.update(_images(4, 0).flatten(0, 1), ids=ids[:, 0], position=position)
    with pytest.raises(StateError, match="sees each row only once"):
        running.result()
    with pytest.raises(InputError, match=r"expected positions in \[0, 9\)"):
        _fit(FOD(max_positions=9, **TINY), _images(4, 0))


@pytest.mark.truth("the scores of the whole held-out images, and infinity for the others")
def test_held_out_images_with_a_patch_that_is_not_finite_are_infinitely_unusual():
    images = _images(120, 11)
    images[::15, 3, 0] = torch.nan
    ids, _, position = _columns(120)
    names = ids[:, 0].tolist()
    stream = Stream.of(images.flatten(0, 1), ids=names, group=names, position=position)
    found = fit(FOD(**TINY), stream, progress=False)
    assert found.split is not None
    held = torch.cat([found.split.is_held(b.split_draw) for b in stream])[::PLACES]
    bad = torch.arange(120) % 15 == 0
    assert 0 < int((held & bad).sum()) < int(held.sum())
    result = found.result("fod")
    whole = images[held & ~bad]
    scores = result.score(whole.flatten(0, 1), *_columns(len(whole))).reshape(-1, PLACES).amax(1)
    calibration = result.calibration
    assert calibration.n == int(held.sum())
    want = (1 + int((held & bad).sum()) + int((scores >= scores.median()).sum())) / (
        1 + calibration.n
    )
    assert float(calibration.p_value([float(scores.median())])[0]) == pytest.approx(want)
