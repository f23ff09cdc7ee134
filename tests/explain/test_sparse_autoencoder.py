import json
import math

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.optimize import linear_sum_assignment

from run_case import Stopping
from sonde.core.edit import EditContext
from sonde.core.errors import InputError, ShapeError, StateError, StoreError
from sonde.core.site import Site
from sonde.core.stream import Stream
from sonde.engine.array_stream import array_stream
from sonde.explain import Dictionary, SparseAutoencoder, load_dictionary
from sonde.explain._codes import (
    FeatureCodes,
    codes_of,
    few_codes,
    gated,
    jump,
    prefix_error,
    ungated,
)
from sonde.run.fitting.fit import fit
from sonde.run.passes.driver import Interrupted
from sonde.stats.training import generator

N, DIM, FEATURES, K = 4096, 12, 16, 2
HOW = {"features": FEATURES, "k": K, "batch": 256, "mixed": 1, "passes": 12, "rate": 2e-2}


def _planted(signed=True):
    """Rows that are each the sum of two planted unit directions, and these directions."""
    source = generator("planted")
    true = torch.nn.functional.normalize(torch.randn(FEATURES, DIM, generator=source), dim=1)
    index = torch.rand(N, FEATURES, generator=source).topk(K, 1).indices
    size = 1 + torch.rand(N, K, generator=source)
    sign = torch.randint(0, 2, (N, K), generator=source) * 2 - 1 if signed else 1
    return (true[index] * (size * sign)[:, :, None]).sum(1), true


def _matched(found, true):
    """Share of planted directions that have one feature of their own along them."""
    cosines = (torch.nn.functional.normalize(found.decoder, dim=1) @ true.T).abs()
    rows, columns = linear_sum_assignment(-cosines.numpy())
    return float((cosines[rows, columns] > 0.9).double().mean())


@pytest.fixture(scope="module")
def signed():
    x, _ = _planted()
    return {act: SparseAutoencoder(act=act, **HOW).fit(x) for act in ("abstopk", "topk")}


@pytest.mark.truth("the planted directions, one to one")
def test_signed_features_are_recovered_where_signs_are_kept_and_cost_twice_as_many_elsewhere(
    signed,
):
    _, true = _planted()
    assert signed["abstopk"].value < 0.15
    assert _matched(signed["abstopk"], true) >= 0.7
    assert signed["topk"].value > signed["abstopk"].value + 0.1
    assert signed["abstopk"].l0 == pytest.approx(K)


def _positive(often: float | torch.Tensor = 0.12):
    """Rows of planted directions with positive sizes, these directions and the sizes."""
    source = generator("p")
    true = torch.nn.functional.normalize(torch.randn(FEATURES, DIM, generator=source), dim=1)
    z = (torch.rand(N, FEATURES, generator=source) < often) * (
        1 + torch.rand(N, FEATURES, generator=source)
    )
    return z @ true, true, z


@pytest.mark.essential
@pytest.mark.parametrize(
    ("act", "k", "penalty"), [("topk", 4, 1.0), ("batchtopk", 3, 1.0), ("gated", 3, 2.0)]
)
@pytest.mark.truth("the planted directions, one to one")
def test_features_without_signs_are_recovered(act, k, penalty):
    x, true, _ = _positive()
    found = SparseAutoencoder(act=act, penalty=penalty, dead_after=500, **{**HOW, "k": k}).fit(x)
    assert found.value < 0.12
    assert _matched(found, true) >= 0.6


@pytest.mark.essential
@pytest.mark.truth("the planted sizes")
def test_sizes_of_gated_features_are_not_shrunk_by_the_penalty_as_those_of_relu_are():
    x, true, z = _positive()
    ratios = {}
    for act in ("gated", "relu"):
        how = {**HOW, "passes": 14}
        found = SparseAutoencoder(act=act, penalty=2.0, dead_after=500, **how).fit(x)
        best = (torch.nn.functional.normalize(found.decoder, dim=1) @ true.T).max(0)
        sizes = found.encode(x)[:, best.indices] * found.decoder.norm(dim=1)[best.indices]
        known = (z > 0) & (sizes > 0) & (best.values > 0.9)
        ratios[act] = float(sizes[known].sum() / z[known].sum())
    assert 0.9 < ratios["gated"] < 1.1, ratios
    assert ratios["relu"] < ratios["gated"] - 0.1, ratios


@pytest.mark.truth("the formula of gates, entry by entry")
def test_gated_features_are_read_as_features_with_thresholds():
    source = generator("gates")
    x, encoder = torch.randn(50, 4, generator=source), torch.randn(6, 4, generator=source)
    gate_bias, log_gain, bias = torch.randn(3, 6, generator=source)
    products = x @ encoder.T
    want = torch.where(
        products + gate_bias > 0, (log_gain.exp() * products + bias).clamp(min=0), torch.zeros(())
    )
    torch.testing.assert_close(gated(products, gate_bias, log_gain, bias)[0], want)
    encoder, bias, threshold = ungated(encoder, gate_bias, log_gain, bias)
    read = codes_of(x @ encoder.T + bias, "jumprelu", 0, threshold.relu()).dense(6)
    torch.testing.assert_close(read, want)


@pytest.mark.essential
@pytest.mark.truth("the rows rebuilt from the first features alone, and the errors of slices")
def test_the_first_features_of_a_nested_dictionary_rebuild_rows_alone():
    often = torch.full((FEATURES,), 0.06)
    often[5] = 0.4
    x, _, _ = _positive(often)
    left = {}
    for act in ("matryoshka", "batchtopk"):
        found = SparseAutoencoder(act=act, dead_after=500, **HOW).fit(x)
        first = torch.where(torch.arange(FEATURES) < FEATURES // 4, found.encode(x), 0.0)
        total = (x - x.mean(0)).square().sum()
        left[act] = float((x - found.decode(first)).square().sum() / total)
    assert left["matryoshka"] < left["batchtopk"] - 0.1, left
    z, decoder = torch.rand(3, 32), torch.randn(32, 5)
    rows = torch.randn(3, 5)
    parts = [(rows - z[:, :m] @ decoder[:m]).square().sum(1).mean() for m in (2, 4, 8, 16, 32)]
    torch.testing.assert_close(prefix_error(FeatureCodes(z), decoder, rows), sum(parts) / 5)


def _parts(x, group=None):
    """Return the rows that train, and the rows of the groups with the smallest tenth of keys."""
    columns = {} if group is None else {"group": group}
    stream = array_stream(x, columns, None, 0, numbered=True)
    draw = torch.cat([b.column("group_draw", "x") for b in stream.batches(0, len(stream))])
    held = draw.numpy().view("uint64") < 2**64 // 10
    return x[torch.as_tensor(~held)], x[torch.as_tensor(held)]


def _left(found, rows, every):
    """Return the fraction of rows' variance around all rows' mean that is left unexplained."""
    error = (rows - found.rebuild(rows)).double().square().sum()
    return float(error / (rows - every.mean(0)).double().square().sum())


@pytest.mark.truth("sums over held-out rows, numpy's SVD, and the rows themselves where k = dim")
def test_health_is_that_of_held_out_rows(signed):
    x, _ = _planted()
    found = signed["abstopk"]
    used, held = _parts(x)
    assert found.n == len(held)
    assert found.value == pytest.approx(_left(found, held, x), rel=1e-4)
    assert found.conventions["unexplained in training"] == pytest.approx(
        _left(found, used, x), rel=1e-4
    )
    axes = numpy.linalg.svd((used - used.mean(0)).double().numpy())[2][:K]
    rows = (held - used.mean(0)).double().numpy()
    rest = rows - rows @ axes.T @ axes
    share = (rest**2).sum() / float((held - x.mean(0)).double().square().sum())
    assert found.conventions["principal components"] == K
    assert found.conventions["unexplained by components"] == pytest.approx(share, rel=1e-4)
    assert found.value < share / 3
    z = found.encode(x)
    assert torch.equal(found.density, (z != 0).double().mean(0))
    assert found.conventions["l0"] == float((z != 0).sum(1).double().mean())
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator(3)))[0]
    zero = torch.zeros(5)
    exact = Dictionary(
        encoder=turn, bias=zero, centre=zero, decoder=turn, offset=zero, act="abstopk", k=5
    )
    rows = torch.randn(7, 5, generator=generator(4))
    torch.testing.assert_close(exact.rebuild(rows), rows)


@pytest.mark.slow
@pytest.mark.truth("errors on rows of new documents")
def test_a_dictionary_that_knows_its_documents_by_heart_is_judged_on_others():
    """Each document has a direction of its own, which a wide dictionary memorises."""
    source = generator("documents")
    group = torch.arange(40).repeat_interleave(60)
    own = torch.nn.functional.normalize(torch.randn(60, DIM, generator=source), dim=1)
    x = own[group] * 4 + 0.3 * torch.randn(len(group), DIM, generator=source)
    fresh = own[40:].repeat_interleave(60, 0) * 4 + 0.3 * torch.randn(1200, DIM, generator=source)
    how = {"k": 1, "batch": 128, "mixed": 1, "passes": 20, "rate": 2e-2, "dead_after": 500}
    wide = SparseAutoencoder(features=60, **how).fit(x, group=group)
    assert wide.conventions["unexplained in training"] < 0.2
    _, held = _parts(x, group)
    assert len(held) % 60 == 0
    assert wide.value == pytest.approx(_left(wide, held, x), rel=1e-4)
    assert wide.value > 3 * wide.conventions["unexplained in training"]
    assert abs(wide.value - _left(wide, fresh, x)) < 0.2
    stopped = SparseAutoencoder(features=60, patience=2, **how).fit(x, group=group)
    assert stopped.value <= wide.value
    alone = SparseAutoencoder(features=8, **how).fit(x[:60], group=group[:60])
    assert "few_groups" in alone.flags
    assert alone.n == 60


def test_training_stops_where_new_rows_get_no_better():
    x, _ = _planted()
    how = {**HOW, "passes": 30, "rate": 0.2}
    short, whole = (SparseAutoencoder(patience=p, **how).fit(x[:600]) for p in (2, 0))
    assert short.conventions["steps"] < whole.conventions["steps"]


@pytest.mark.parametrize("act", ["topk", "abstopk"])
@pytest.mark.truth("autograd through the dense features")
def test_gradients_of_few_features_are_those_of_all(act):
    source = generator(act)
    x = torch.randn(9, 5, generator=source, dtype=torch.float64)
    leaves = [
        torch.randn(s, generator=source, dtype=torch.float64) for s in ((7, 5), (7,), (7, 5), (5,))
    ]
    leaves = [v.requires_grad_() for v in leaves]
    encoder, bias, decoder, centre = leaves
    few = few_codes(x, centre, encoder, bias, act, 3)
    pre = (x - centre) @ encoder.T + bias
    kept = codes_of(pre, act, 3).dense(7).detach() != 0
    all_of = (pre if act == "abstopk" else pre.relu()) * kept
    torch.testing.assert_close(few.dense(7), all_of)
    out, want = few.decoded(decoder), all_of @ decoder
    found = torch.autograd.grad(out.square().sum() + few.value.sum(), leaves)
    wanted = torch.autograd.grad(want.square().sum() + all_of.sum(), leaves)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
    assert few.fired(7).tolist() == kept.sum(0).tolist()


@pytest.mark.truth("the formula of the rectangle, entry by entry")
def test_gradients_of_thresholds_come_through_a_rectangle():
    pre = torch.tensor([[0.5, 0.98, 1.04, 2.0]], dtype=torch.float64).requires_grad_()
    theta = torch.ones(4).double().requires_grad_()
    z, active = jump(pre, theta, 0.1)
    assert (z.tolist(), active.tolist()) == ([[0.0, 0.0, 1.04, 2.0]], [[0.0, 0.0, 1.0, 1.0]])
    of_pre, of_theta = torch.autograd.grad((3 * z + active).sum(), (pre, theta))
    assert of_pre.tolist() == [[0.0, 0.0, 3.0, 3.0]]
    torch.testing.assert_close(of_theta, torch.tensor([0.0, -40.0, -40.0, 0.0]).double())


def test_a_chosen_zero_has_not_fired():
    codes = codes_of(torch.tensor([[-1.0, -2.0, 3.0]]), "topk", 2)
    assert codes.fired(3).tolist() == [0, 0, 1]
    assert FeatureCodes(torch.tensor([[0.0, 2.0]])).fired(2).tolist() == [0, 1]


@pytest.mark.parametrize("act", ["batchtopk", "jumprelu", "relu", "gated", "matryoshka"])
def test_a_row_is_read_by_itself(act):
    x, _ = _planted(signed=False)
    found = SparseAutoencoder(act=act, **{**HOW, "passes": 2}).fit(x[:1024])
    z = found.encode(x[:50])
    torch.testing.assert_close(torch.cat([found.encode(row[None]) for row in x[:50]]), z)
    assert 0 < float((z != 0).double().mean()) < 1


@pytest.mark.truth("the same rows, ten times as long")
def test_the_scale_of_rows_changes_no_feature():
    x, _ = _planted()
    how = {**HOW, "passes": 2}
    one, ten = (SparseAutoencoder(**how).fit(rows) for rows in (x, 10 * x))
    torch.testing.assert_close(ten.encode(10 * x[:20]), one.encode(x[:20]), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ten.decoder, 10 * one.decoder, rtol=1e-3, atol=1e-3)


@pytest.mark.essential
@pytest.mark.truth("the same rows without the massive unit")
@pytest.mark.parametrize("often", [0.03, 1.0])
def test_a_massive_unit_takes_no_feature_from_the_others(often):
    x, _, _ = _positive()
    massive = x.clone()
    source = generator("massive")
    varied = 1 + 0.05 * torch.randn(N, generator=source)
    massive[:, 3] = 3000 * varied * (torch.rand(N, generator=source) < often)
    how = {**HOW, "k": 4, "dead_after": 500}
    plain, beside = (SparseAutoencoder(**how).fit(rows) for rows in (x, massive))
    left = {}
    for name, found, rows in (("plain", plain, x), ("massive", beside, massive)):
        others = torch.arange(DIM) != 3
        error = (rows - found.rebuild(rows))[:, others].square().sum()
        left[name] = float(error / (x - x.mean(0))[:, others].square().sum())
    assert left["massive"] < left["plain"] + 0.1, left
    assert beside.conventions["units scaled down"] == [3]
    assert "massive_units" in beside.flags
    assert "massive_units" not in plain.flags
    # the dictionary is one of states as they are: the massive unit is rebuilt in its own scale
    far = (massive - beside.rebuild(massive))[:, 3].square().mean().sqrt()
    assert far < 0.9 * massive[:, 3].std()


@pytest.mark.truth("the same rows, 3,000 further along one unit")
def test_where_rows_are_centred_changes_no_feature():
    x, _, _ = _positive()
    how = {**HOW, "passes": 2}
    far = x.clone()
    far[:, 3] += 3000
    one, other = (SparseAutoencoder(**how).fit(rows) for rows in (x, far))
    assert other.value == pytest.approx(one.value, abs=0.01)
    torch.testing.assert_close(other.encode(far[:20]), one.encode(x[:20]), rtol=0.05, atol=0.05)


@pytest.mark.slow
def test_dead_features_are_flagged():
    x, _, _ = _positive()
    alive = SparseAutoencoder(**{**HOW, "dead_after": 500}).fit(x)
    dead = SparseAutoencoder(**{**HOW, "features": 400, "passes": 1, "k": 1}).fit(x)
    assert dead.dead_share > 0.05
    assert "dead_features" in dead.flags
    assert alive.dead_share <= 0.05
    assert "dead_features" not in alive.flags
    constant = SparseAutoencoder(**{**HOW, "passes": 1}).fit(torch.full((64, DIM), 3.0))
    assert "dead" in constant.flags
    assert "dead" not in alive.flags
    assert math.isnan(constant.value)


@pytest.mark.slow
def test_a_killed_training_goes_on_with_the_same_bits(tmp_path):
    x, _ = _planted()
    stream, method = Stream.of(x[:512]), SparseAutoencoder(**{**HOW, "passes": 2, "batch": 48})
    how = {"unit_size": 64, "progress": False}
    with pytest.raises(Interrupted):
        fit(method, Stopping(stream, after=13), directory=tmp_path / "a.run", **how)
    again = fit(method, stream, directory=tmp_path / "a.run", **how)
    whole = fit(method, stream, **how)
    assert again.save(tmp_path / "a.sonde") == whole.save(tmp_path / "b.sonde")


@pytest.mark.truth("the tensors as safetensors reads them, and the formula of the layout")
@pytest.mark.parametrize("act", ["topk", "batchtopk", "relu"])
def test_files_are_read_by_others_and_their_layout_is_that_of_saelens(tmp_path, act):
    x, _ = _planted()
    found = SparseAutoencoder(act=act, **{**HOW, "passes": 1}).fit(x[:512])
    found.save(tmp_path / "d.safetensors", site="layers.0")
    assert torch.equal(load_file(tmp_path / "d.safetensors")["decoder"], found.decoder)
    again = load_dictionary(tmp_path / "d.safetensors")
    assert torch.equal(again.encode(x), found.encode(x))
    assert (again.act, again.k, again.conventions["site"]) == (act, K, "layers.0")
    found.save_saelens(tmp_path / "sae", hook_name="blocks.0.hook_resid_post")
    t = load_file(tmp_path / "sae" / "sae_weights.safetensors")
    pre = (x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    if act == "topk":
        top = pre.topk(K, dim=1)
        z = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    else:
        z = pre.relu() * (pre > t.get("threshold", torch.zeros(1)))
    theirs = load_dictionary(tmp_path / "sae")
    torch.testing.assert_close(theirs.encode(x), z, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(theirs.rebuild(x), z @ t["W_dec"] + t["b_dec"], rtol=1e-4, atol=1e-4)
    assert theirs.conventions["hook_name"] == "blocks.0.hook_resid_post"


@pytest.mark.truth("the layout: the k largest features in lengths of the decoder")
def test_top_k_of_saelens_that_counts_in_lengths_of_the_decoder_is_read(tmp_path):
    source = generator("sae")
    shapes = {"W_enc": (3, 7), "W_dec": (7, 3), "b_dec": (3,), "b_enc": (7,)}
    t = {n: torch.randn(*s, generator=source) for n, s in shapes.items()}
    save_file(t, tmp_path / "sae_weights.safetensors")
    config = {"architecture": "topk", "k": 2, "rescale_acts_by_decoder_norm": True}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    x, length = torch.randn(40, 3, generator=source), t["W_dec"].norm(dim=1)
    told = (((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]) * length).relu()
    z = torch.where(told >= told.topk(2).values[:, 1:], told, 0.0)
    found = load_dictionary(tmp_path)
    torch.testing.assert_close(found.encode(x), z, rtol=1e-4, atol=1e-5)
    rebuilt = (z / length) @ t["W_dec"] + t["b_dec"]
    torch.testing.assert_close(found.rebuild(x), rebuilt, rtol=1e-4, atol=1e-4)


@pytest.mark.truth("the formula of the layout")
def test_gated_dictionaries_of_saelens_are_read(tmp_path):
    source = generator("sae")
    shapes = {"W_enc": (3, 7), "W_dec": (7, 3), "b_dec": (3,)}
    shapes |= dict.fromkeys(("b_gate", "r_mag", "b_mag"), (7,))
    t = {n: torch.randn(*s, generator=source) for n, s in shapes.items()}
    save_file(t, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text('{"architecture": "gated"}')
    x = torch.randn(40, 3, generator=source)
    products = (x - t["b_dec"]) @ t["W_enc"]
    sizes = (t["r_mag"].exp() * products + t["b_mag"]).relu()
    z = torch.where(products + t["b_gate"] > 0, sizes, 0.0)
    found = load_dictionary(tmp_path)
    torch.testing.assert_close(found.encode(x), z, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.rebuild(x), z @ t["W_dec"] + t["b_dec"], rtol=1e-4, atol=1e-4)


@pytest.mark.truth("x + (value - z) d by hand")
def test_a_feature_is_set_and_a_state_is_rebuilt(signed):
    x, _ = _planted()
    x, found = x[:6].reshape(2, 3, DIM), signed["abstopk"]
    z = found.encode(x)
    want = x + (4.0 - z[..., 3:4]) * found.decoder[3]
    site, context = Site("0"), EditContext()
    torch.testing.assert_close(found.edit(features={3: 4.0}).apply(x, site, context), want)
    torch.testing.assert_close(found.edit().apply(x, site, context), found.rebuild(x))
    assert found.edit(0.0).apply(x, site, context) is x


def test_errors_say_what_to_do(tmp_path, signed):
    x, _ = _planted()
    with pytest.raises(InputError, match=r"a row for each of 16 features .*got 9 rows"):
        SparseAutoencoder(**HOW).fit(x[:9])
    with pytest.raises(InputError, match=r"penalty in \[0, inf\), got -1\.0"):
        SparseAutoencoder(penalty=-1.0)
    with pytest.raises(InputError, match="features of at least 1"):
        SparseAutoencoder(k=0)
    with pytest.raises(ShapeError, match=r"expected dim=12 \(as fitted\), got dim=3"):
        signed["topk"].encode(x[:, :3])
    with pytest.raises(InputError, match=r"features from 0 to 15, got \[16\]"):
        signed["topk"].edit(features={16: 1.0})
    with pytest.raises(InputError, match="Save it with save"):
        signed["abstopk"].save_saelens(tmp_path / "sae")
    with pytest.raises(StoreError, match="no such file"):
        load_dictionary(tmp_path / "nowhere.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"1234567890")
    with pytest.raises(StateError, match="is not a safetensors file"):
        load_dictionary(tmp_path / "bad.safetensors")


def test_a_training_that_diverges_keeps_the_weights_before_and_says_so():
    x, _ = _planted()
    found = SparseAutoencoder(act="relu", **{**HOW, "passes": 3, "rate": 1e30}).fit(x[:512])
    assert found.flags == ("diverged",)
    assert found.conventions["diverged at step"] == 0
    assert math.isfinite(found.value)
