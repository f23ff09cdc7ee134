"""A guard scores what a user's own calls bring, and leaves the calls as they are."""

import warnings
from functools import partial

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import sonde
from models import mlp
from sonde import Guard
from sonde.core import CalibrationError, InputError, Model, ShapeError, StateError, Stream
from sonde.core.edit import Scale
from sonde.core.errors import SondeWarning
from sonde.detect import KNN, MSP, NAC, Energy, Mahalanobis
from sonde.run.fitting.fit import fit
from sonde.run.fitting.fitted import Fitted
from sonde.run.scoring.calibrate import calibrate
from sonde.run.scoring.score import score
from sonde.tap import Tap, cache_of, editing, live_stream
from tap_inputs import Arrays, Texts, padded

IDS = torch.Generator().manual_seed(0)
TEXTS = [torch.randint(3, 64, (4 + i % 8,), generator=IDS).tolist() for i in range(120)]


def language_model():
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=3,
        n_embd=32,
        n_head=2,
        vocab_size=64,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=1,
    )
    return Model(GPT2LMHeadModel(config).eval(), config=config, task="causal")


def texts(model, items, reducer="last", objective=None):
    return live_stream(model, Texts(items, special=False), "blocks", reducer, objective=objective)


@pytest.fixture(scope="module")
def causal():
    return language_model()


@pytest.fixture(scope="module")
def probes(causal):
    """Return fitted probes by reducer and objective, each made once."""
    made = {}

    def probe(reducer, objective=None):
        if (reducer, objective) not in made:
            detectors = [Mahalanobis(), KNN(k=3), Energy()] + ([NAC()] if objective else [])
            stream = texts(causal, TEXTS, reducer, objective)
            made[reducer, objective] = fit(detectors, stream, progress=False)
        return made[reducer, objective]

    return probe


def by_place(table):
    return {
        (r["instrument"], r["site"], r["id"].removeprefix("text"), r["position"]): r
        for r in table.to_pylist()
    }


@pytest.mark.slow
@pytest.mark.truth("sonde.score on the same texts")
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("objective", [None, "kl_uniform"])
@pytest.mark.parametrize("reducer", ["last", "tokens", "mean"])
def test_a_forward_scores_as_a_stream_does(causal, probes, reducer, objective, side):
    probe, items = probes(reducer, objective), TEXTS[:4]
    ids, mask = padded(items, side)
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    call = {"input_ids": ids, "attention_mask": mask.long(), "position_ids": positions}
    with torch.no_grad():
        plain = causal.module(**call)
        with Guard(causal, probe) as guard:
            out = causal.module(**call)
    assert torch.equal(plain.logits, out.logits)
    assert not out.logits.requires_grad
    assert not cache_of(out).layers[0].keys.requires_grad
    want = by_place(score(probe, texts(causal, items, reducer, objective), progress=False))
    mine = by_place(guard.table())
    assert mine.keys() == want.keys()
    assert [r["score"] for r in mine.values()] == pytest.approx(
        [want[k]["score"] for k in mine], rel=1e-4, abs=1e-5
    )
    assert [r["p"] for r in mine.values()] == pytest.approx([want[k]["p"] for k in mine], abs=0.05)


@pytest.mark.slow
@pytest.mark.truth("the scores in float64 of the same rows")
def test_scores_in_float32_have_a_small_error(causal, probes):
    probe, (ids, mask) = probes("last"), padded(TEXTS[:8])
    with Guard(causal, probe) as guard, Tap(causal, "blocks", "last") as tap:
        tap.run(input_ids=ids, attention_mask=mask.long())
        rows = tap.rows
    for (method, site), scorer in probe.scorers.items():
        if method in ("mahalanobis", "knn"):
            exact = scorer.scorer.score(rows[site].double()).double()
            error = (guard.scores[method, site] - exact).abs() / exact
            assert float(error.max()) < 1e-5
            assert guard.scores[method, site].dtype == torch.float64


@pytest.mark.truth("one forward over the whole text")
@pytest.mark.parametrize("settings", [{}, {"do_sample": True}, {"use_cache": False}], ids=str)
def test_generation_scores_each_token_once(causal, probes, settings):
    ids, mask = padded([TEXTS[0], TEXTS[7]], "left")
    call = {"max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": None, **settings}
    torch.manual_seed(3)
    plain = causal.module.generate(input_ids=ids, attention_mask=mask.long(), **call)
    torch.manual_seed(3)
    with Guard(causal, probes("tokens"), methods=["mahalanobis", "knn"]) as guard:
        out = causal.module.generate(input_ids=ids, attention_mask=mask.long(), **call)
    assert torch.equal(plain, out)
    whole = [
        row[row.shape[0] - len(text) - 6 : -1].tolist()
        for row, text in zip(out, (TEXTS[0], TEXTS[7]), strict=True)
    ]
    want = by_place(score(probes("tokens"), texts(causal, whole, "tokens"), progress=False))
    mine = guard.table().to_pylist()
    assert len(
        {tuple(r[k] for k in ("instrument", "site", "id", "position")) for r in mine}
    ) == len(mine)
    assert len(mine) == 2 * 3 * sum(len(w) for w in whole)
    for row in mine:
        key = (row["instrument"], row["site"], row["id"], row["position"])
        assert row["score"] == pytest.approx(want[key]["score"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.truth("one forward over each beginning of the text")
def test_the_last_token_of_each_step_has_its_score_and_gradient(causal, probes):
    probe, prompt = probes("last", "kl_uniform"), TEXTS[1]
    with Guard(causal, probe) as guard:
        out = causal.module.generate(
            input_ids=torch.tensor([prompt]), max_new_tokens=4, pad_token_id=0, eos_token_id=None
        )[0].tolist()
    for n, place in enumerate((0, *range(len(prompt), len(prompt) + 3))):
        text = out[: len(prompt) + n]
        want = by_place(score(probe, texts(causal, [text], "last", "kl_uniform"), progress=False))
        for name, found in guard.scores.items():
            assert int(guard.position[name][n]) == place
            assert float(found[n]) == pytest.approx(want[*name, "0", 0]["score"], rel=1e-3)


@pytest.fixture(scope="module")
def small():
    net = mlp().eval()
    rows = torch.randn(400, 8, generator=torch.Generator().manual_seed(1))
    stream = live_stream(Model(net), Arrays(rows), "auto", objective="kl_uniform")
    return net, fit([Mahalanobis(), MSP(), NAC()], stream, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("sites", [["4:in"], ["1", "4:in"]])
@pytest.mark.truth("sonde.score on the same rows")
def test_gradients_at_an_input_are_those_of_a_stream(sites):
    net, x = mlp().eval(), torch.randn(200, 8, generator=torch.Generator().manual_seed(1))
    stream = live_stream(Model(net), Arrays(x), sites, objective="kl_uniform")
    probe = fit(NAC(), stream, progress=False)
    with torch.no_grad(), Guard(net, probe) as guard:
        assert not net(x).requires_grad
    table = score(probe, stream, progress=False).to_pylist()
    for (_, site), found in guard.scores.items():
        want = sorted(row["score"] for row in table if row["site"] == site)
        assert sorted(found.tolist()) == pytest.approx(want, rel=1e-5)


def test_an_unusual_input_raises_an_alarm_with_its_place(small):
    net, probe = small
    heard = []
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
    x[2] = 40.0
    with Guard(net, probe, alpha=0.02, on_alarm=heard.append, methods=["mahalanobis"]) as guard:
        net(x)
    assert heard == guard.alarms
    assert {a.example for a in heard if a.p < 0.013} == {2}
    first = heard[0]
    calibration = probe.result("mahalanobis", first.site).calibration
    assert first.threshold == calibration.threshold(0.02) < first.score
    assert first.p == float(calibration.p_value(first.score)) <= 0.02
    assert guard.n_alarms == len(heard)
    assert guard.n_forwards == 1


def test_what_is_not_finite_is_infinitely_unusual(small):
    net, probe = small
    x = torch.zeros(2, 8)
    x[1, 3] = float("nan")
    with Guard(net, probe, methods=["mahalanobis", "msp"]) as guard:
        net(x)
    for found in guard.scores.values():
        assert torch.isfinite(found[0])
        assert found[1] == torch.inf
    assert {a.example for a in guard.alarms if a.score == torch.inf} == {1}
    with Guard(net, probe, alpha=None, methods=["mahalanobis"]) as silent:
        net(x)
    assert {a.example for a in silent.alarms} == {1}


def test_an_exception_on_alarm_leaves_the_forward_and_the_model_clean(small):
    net, probe = small

    def stop(alarm):
        raise RuntimeError("enough")

    with (
        pytest.raises(RuntimeError, match="enough"),
        Guard(net, probe, on_alarm=stop),
        torch.no_grad(),
    ):
        net(torch.full((1, 8), 50.0))
    assert torch.is_grad_enabled()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    with torch.no_grad(), Guard(net, probe) as guard:
        with pytest.raises(RuntimeError, match="shapes"):
            net(torch.zeros(1, 7))
        assert not torch.is_grad_enabled()
        net(torch.zeros(1, 8))
    assert len(guard.scores["mahalanobis", "0:out"]) == 1


def test_guards_nest_and_read_what_an_edit_hands_on(small):
    net, probe = small
    seen = []
    handle = net[0].register_forward_hook(lambda m, a, out: seen.append(out))
    x = torch.randn(3, 8)
    with Guard(net, probe) as outer:
        seen.clear()  # the guard asked the model once, at the start
        net(x)
        before = outer.scores["mahalanobis", "0:out"]
        with Guard(net, probe) as inner, Tap(net, "0") as tap:
            net(x)
        with editing(net, Scale(100.0), "0"):
            net(x)
        after = outer.scores["mahalanobis", "0:out"]
    handle.remove()
    assert torch.equal(inner.scores["mahalanobis", "0:out"], before)
    assert tap.rows["0:out"].shape == (3, 16)
    assert len(seen) == 3
    assert bool((after > 10 * before).all())


@pytest.mark.truth("the gradient of the same loss without a guard")
def test_training_goes_on_inside_a_guard(small):
    net, probe = small
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(3))
    net(x).square().sum().backward()
    want = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    with Guard(net, probe) as guard:
        out = net(x)
        assert out.requires_grad
        assert all(p.grad is None for p in net.parameters())
        out.square().sum().backward()
    assert all(torch.equal(p.grad, w) for p, w in zip(net.parameters(), want, strict=True))
    net.zero_grad()
    assert len(guard.scores["nac", "0:out"]) == 5


def test_inference_mode_is_fine_without_gradients_and_refused_with(small):
    net, probe = small
    x = torch.randn(2, 8)
    with torch.inference_mode(), Guard(net, probe, methods=["mahalanobis"]) as guard:
        net(x)
    with guard:
        net(x)
    with (
        torch.inference_mode(),
        Guard(net, probe),
        pytest.raises(InputError, match="inference_mode forbids"),
    ):
        net(x)


@pytest.mark.truth("the same model in float32, within the rounding of bfloat16")
def test_a_model_in_bfloat16_is_scored_with_a_warning(small):
    net, probe = small
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(4))
    with Guard(net, probe, methods=["mahalanobis"]) as guard:
        net(x)
    with pytest.warns(SondeWarning, match="runs in bfloat16, but the probe was fitted in float32"):
        narrow = Guard(mlp().eval().bfloat16(), probe, methods=["mahalanobis"])
    with narrow:
        narrow._onlooker.root(x.bfloat16())
    wide, short = guard.scores["mahalanobis", "0:out"], narrow.scores["mahalanobis", "0:out"]
    ratio = (short - wide).abs() / wide
    assert 0.0 < float(ratio.median()) < 0.03


@pytest.mark.slow
@pytest.mark.truth("the same rows scored without autocast, in float64")
def test_scores_under_autocast_are_made_in_float32():
    layers = (nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16))
    net, seen = nn.Sequential(*layers).eval(), {}
    draw = torch.Generator().manual_seed(5)
    rows, x = torch.randn(400, 8, generator=draw), torch.randn(64, 8, generator=draw)
    stream = live_stream(Model(net), Arrays(rows), ["0", "2"], logits=True)
    probe = fit([Mahalanobis(), KNN()], stream, progress=False)
    for key in ("0", "2"):
        keep = partial(seen.__setitem__, f"{key}:out")
        net.get_submodule(key).register_forward_hook(lambda m, a, out, keep=keep: keep(out))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad(), Guard(net, probe) as guard:
        net(x)
        direct = {n: s.score(seen[n[1]]) for n, s in probe.scorers.items()}
    assert guard._stacked is not None
    for name, scorer in probe.scorers.items():
        truth = scorer.score(seen[name[1]].double()).double()
        torch.testing.assert_close(guard.scores[name].double(), truth, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(direct[name].double(), truth, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_what_was_fitted_on_a_directory_guards_its_live_model(tmp_path):
    module = language_model().module
    assert isinstance(module, GPT2LMHeadModel)
    module.save_pretrained(tmp_path / "model")
    ids = [{"input_ids": text} for text in TEXTS]
    stream = sonde.read(str(tmp_path / "model"), ids, sites="transformer.h.1")
    probe = fit(Mahalanobis(), stream, progress=False)
    live = GPT2LMHeadModel.from_pretrained(tmp_path / "model").eval()
    for module in (sonde.load(live), sonde.load(str(tmp_path / "model")).module):
        Guard(module, probe)
    with Guard(live, probe) as guard:
        live(torch.tensor([TEXTS[0]]))
    assert list(guard.scores) == [("mahalanobis", "transformer.h.1:out")]


def test_another_model_is_refused(small, causal, probes, tmp_path):
    net, probe = small
    probe.save(tmp_path / "p.sonde")
    Guard(net, tmp_path / "p.sonde")
    with pytest.raises(StateError, match="fitted on another model: its weights differ"):
        Guard(mlp(seed=1), probe)
    with pytest.raises(StateError, match="another model"):
        Guard(causal, probe)
    on_arrays = fit(Mahalanobis(), Stream.of(torch.randn(60, 4)), progress=False)
    with pytest.raises(StateError, match="fitted on arrays, not on a model"):
        Guard(net, on_arrays)
    for wrong in ("knn", ["knn"], ["mahalanobis", "knn"]):
        with pytest.raises(StateError, match=r"expected a detector among .*, got 'knn'"):
            Guard(net, probe, methods=wrong)
    assert Guard(net, probe, methods="mahalanobis").scores == {}
    with pytest.raises(InputError, match="expected a live module"):
        Guard("sonde:digits", probe)


def test_sites_that_are_gone_are_refused(small):
    net, probe = small
    header = {**probe.header, "sites": [{**s, "text": "9:out"} for s in probe.header["sites"]]}
    assert isinstance(probe, Fitted)
    moved = fit(
        Mahalanobis(), live_stream(Model(net), Arrays(torch.randn(50, 8)), "0"), progress=False
    )
    states = {k.replace("0:out", "9:out"): v for k, v in moved.states.items()}
    tasks = tuple(type(t)(t.instrument, ("9:out",)) for t in moved.tasks)
    gone = Fitted(tasks, states, header, moved.split)
    with pytest.raises(StateError, match="fitted at 9:out, which cannot be read from this model"):
        Guard(net, gone, alpha=None)


def test_thresholds_need_calibration_and_enough_rows(small):
    net, _ = small
    stream = live_stream(Model(net), Arrays(torch.randn(50, 8)), "0")
    bare = fit(Mahalanobis(), stream, calibrate=0, progress=False)
    with pytest.raises(CalibrationError, match="is not calibrated"):
        Guard(net, bare)
    with Guard(net, bare, alpha=None) as guard:
        net(torch.zeros(1, 8))
    assert guard.p_values == {}
    assert len(guard.scores) == 1
    with pytest.raises(CalibrationError, match="needs at least 999"):
        Guard(net, fit(Mahalanobis(), stream, progress=False), alpha=0.001)


@pytest.mark.slow
def test_a_mean_over_cached_tokens_is_refused(causal, probes):
    with (
        Guard(causal, probes("mean"), methods=["mahalanobis"]),
        pytest.raises(InputError, match="needs the whole text"),
    ):
        causal.module.generate(input_ids=torch.tensor([TEXTS[0]]), max_new_tokens=3, pad_token_id=0)


def test_rows_of_another_width_are_refused(small):
    net, probe = small
    wide = nn.Sequential(nn.Linear(8, 20), *list(net)[1:2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        named = {k: v for k, v in probe.header["model"].items() if k not in ("structure", "parts")}
        header = {**probe.header, "model": {**named, "dtype": "float64"}, "behaviour": None}
        other = Fitted(probe.tasks[:1], probe.states, header, probe.split)
        with Guard(wide, other, alpha=None) as guard, pytest.raises(ShapeError, match="dim=16"):
            wide(torch.zeros(1, 8))
    assert guard.n_forwards == 0


def test_inputs_with_other_axes_are_refused_by_name(small):
    model, fitted = small
    with Guard(model, fitted), pytest.raises(ShapeError, match=r"axes \(row dim\).*\(3, 4, 16\)"):
        model(torch.zeros(3, 4, 8))


def test_a_module_that_runs_alone_is_not_scored(small):
    net, probe = small
    guard = Guard(net, probe)
    guard.__enter__()
    net[0](torch.zeros(1, 8))
    assert guard.scores == {}
    assert guard.table().num_rows == 0
    with pytest.warns(
        SondeWarning, match=r"saw 0 forward passes of Sequential.*its sites ran 1 time"
    ):
        guard.__exit__(None, None, None)


@pytest.mark.slow
@pytest.mark.truth("sonde.score with the same calibration")
def test_thresholds_of_the_predicted_class(small):
    net, probe = small
    held = torch.randn(900, 8, generator=torch.Generator().manual_seed(5))
    stream = live_stream(Model(net), Arrays(held), objective="kl_uniform")
    found = calibrate(probe, stream, by="predicted", progress=False)
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(6)) * 1.5
    with Guard(net, found, alpha=0.1) as guard:
        net(x)
    live = live_stream(Model(net), Arrays(x), objective="kl_uniform")
    want = score(found, live, progress=False)
    mine = guard.table().sort_by([("instrument", "ascending"), ("site", "ascending")])
    theirs = want.sort_by([("instrument", "ascending"), ("site", "ascending")])
    assert mine["p"].to_pylist() == pytest.approx(theirs["p"].to_pylist())
    assert len(guard.alarms) == sum(p <= 0.1 for p in want["p"].to_pylist()) > 0
    assert {a.p for a in guard.alarms} == {p for p in want["p"].to_pylist() if p <= 0.1}
    with pytest.raises(CalibrationError, match="needs at least 9999"):
        Guard(net, found, alpha=0.0001)
