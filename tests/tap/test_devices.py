"""Models on several devices and in half precision: rows stay where they arise."""

import copy
import warnings

import pytest
import torch

from models import gpt2, llama
from sonde.core.inputs import Model
from sonde.core.site import Reducer
from sonde.core.state import leaves
from sonde.detect import KNN, Energy, Mahalanobis, ViM
from sonde.run.fitting.fit import fit
from sonde.run.scoring.calibrate import calibrate
from sonde.run.scoring.score import score
from sonde.run.watching.guard import Guard
from sonde.tap import live_stream, replay
from sonde.tap.model.axes import Axes
from sonde.tap.rows.frame import Frame
from sonde.tap.rows.reduce import Reduction
from tap_inputs import Texts, texts

WAITED = "called a synchronizing CUDA operation"
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def causal(network) -> Model:
    return Model(network, config=network.config, task="causal")


@pytest.mark.parametrize("reducer", ["mean", "last", "cls", "tokens"])
def test_rows_are_made_on_the_device_of_their_layer(reducer):
    (batch,) = texts([3, 5]).batches(0, 2)
    frame = Frame(batch)
    reduction = Reduction(Reducer(reducer), Axes(("row", "pos", "dim")))
    elsewhere = torch.empty(2, 5, 8, device="meta")
    here, _ = reduction(torch.ones(2, 5, 8), frame)
    rows, _ = reduction(elsewhere, frame)
    assert rows.device.type == "meta"
    assert rows.shape == here.shape
    if reduction.can_wait:
        stacked, _ = reduction.stacked([elsewhere] * 2, frame)
        assert stacked.device.type == "meta"
        assert stacked.shape[1:] == here.shape
    assert frame.on_device(batch.order, elsewhere) is frame.on_device(batch.order, elsewhere)


@pytest.mark.truth("the model in memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_model_with_blocks_on_disk_and_in_memory_gives_the_same_rows(tmp_path, dtype):
    accelerate = pytest.importorskip("accelerate")
    plain = llama().to(dtype)
    places: dict[str, str] = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    places |= {"model.rotary_emb": "cpu", "model.layers.0": "cpu"}
    places |= {"model.layers.1": "disk", "model.layers.2": "disk"}
    spread = accelerate.dispatch_model(
        copy.deepcopy(plain), places, main_device="cpu", offload_dir=str(tmp_path)
    )
    assert next(spread.model.layers[1].parameters()).device.type == "meta"
    found = {}
    for name, network in (("plain", plain), ("spread", spread)):
        batches = list(live_stream(causal(network), texts([3, 5, 4]), "blocks", "mean"))
        found[name] = {k: torch.cat([b.rows[k] for b in batches]) for k in batches[0].rows}
    for key, rows in found["plain"].items():
        assert rows.dtype == dtype
        assert torch.equal(rows, found["spread"][key])


@pytest.mark.truth("float64 moments of the rows as they came")
def test_states_of_bfloat16_rows_are_summed_in_float64():
    network = llama().to(torch.bfloat16)
    stream = live_stream(causal(network), texts([5] * 40), "blocks", "mean")
    rows = torch.cat([b.rows["model.layers.1:out"] for b in stream]).double()
    fitted = fit(Mahalanobis(classes=False), stream, calibrate=0, progress=False)
    (state,) = [s for i, s in fitted.states.items() if "layers.1" in i and hasattr(s, "scatter")]
    assert all(t.dtype == torch.float64 for t in leaves(state))
    z = rows - rows.mean(0)
    torch.testing.assert_close(getattr(state, "scatter"), z.T @ z, rtol=1e-5, atol=1e-7)  # noqa: B009


@gpu
@pytest.mark.gpu
@pytest.mark.truth("the same model on the CPU")
@pytest.mark.parametrize("reducer", ["mean", "last", "tokens"])
def test_rows_and_states_on_a_gpu_equal_those_on_the_cpu(reducer):
    network = gpt2()
    found = {}
    for device in ("cpu", "cuda"):
        model = causal(copy.deepcopy(network).to(device))
        stream = live_stream(model, texts([5, 3, 7, 6] * 8), "blocks", reducer)
        batch = next(iter(stream))
        assert {x.device.type for x in batch.rows.values()} == {device}
        fitted = fit(Mahalanobis(classes=False), stream, calibrate=0, progress=False)
        found[device] = {k: v.cpu() for k, v in batch.rows.items()}, dict(fitted)
    for key, rows in found["cpu"][0].items():
        torch.testing.assert_close(rows, found["cuda"][0][key], rtol=1e-4, atol=1e-5)
    for name, result in found["cpu"][1].items():
        assert float(result.value) == pytest.approx(float(found["cuda"][1][name].value), rel=1e-3)


@gpu
@pytest.mark.gpu
@pytest.mark.truth("the same model on the CPU")
@pytest.mark.parametrize("reducer", ["last", "tokens"])
def test_scores_and_calibrations_on_a_gpu_equal_those_on_the_cpu(reducer):
    network, methods = gpt2(), [Mahalanobis(classes=False), KNN(), ViM(), Energy()]
    found = {}
    for device in ("cpu", "cuda"):
        model = causal(copy.deepcopy(network).to(device))
        streams = [
            live_stream(model, texts(lengths * 10), "blocks", reducer)
            for lengths in ([5, 3, 7, 6], [4, 6, 5, 8])
        ]
        fitted = fit(methods, streams[0], progress=False)
        tables = [score(fitted, streams[1], explain=2, progress=False)]
        tables.append(score(calibrate(fitted, streams[1], progress=False), streams[0]))
        with Guard(model.module, fitted, alpha=None) as guard, torch.no_grad():
            model.module(input_ids=torch.tensor([[5, 6, 7], [8, 9, 4]], device=device))
        found[device] = [torch.tensor(t[c].to_pylist()) for t in tables for c in ("score", "p")]
        found[device] += [x.cpu() for x in guard.scores.values()]
    for here, there in zip(found["cpu"], found["cuda"], strict=True):
        torch.testing.assert_close(here, there, rtol=1e-2, atol=1e-2)


@gpu
@pytest.mark.gpu
def test_a_forward_waits_for_the_gpu_no_more_often_at_more_sites():
    model = causal(gpt2().to("cuda"))
    counts = []
    for sites in ("transformer.h.0", "blocks"):
        stream = live_stream(model, texts([5, 5, 5, 5]), sites, "mean", logits=False)
        list(stream)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                list(stream.batches(0, 4))
            finally:
                torch.cuda.set_sync_debug_mode("default")
        counts.append(sum(WAITED in str(w.message) for w in seen))
    assert counts[0] == counts[1]


@gpu
@pytest.mark.gpu
@pytest.mark.truth("one more forward over each text")
@pytest.mark.parametrize("logits", [False, True], ids=["as they arise", "replayed"])
def test_generated_states_on_a_gpu_are_those_of_each_text(logits):
    network = llama().to("cuda")
    prompts = Texts([[1, 5, 6, 7], [1, 8], [1, 9, 10]], batch_size=3, special=False)
    inputs = replay(causal(network), prompts, max_new_tokens=6, do_sample=True, seed=1)
    stream = live_stream(causal(network), inputs, "blocks", "tokens", logits=logits)
    (batch,), (raw,) = stream.batches(0, 3), inputs.batches(0, 3)
    for i in range(3):
        assert raw.mask is not None
        tokens = raw.kwargs["input_ids"][i][raw.mask[i]][None].cuda()
        kept = []
        handle = network.model.layers[1].register_forward_hook(
            lambda m, a, o, to=kept: to.append(o)
        )
        with torch.no_grad():
            network(tokens)
        handle.remove()
        mine = batch.example["model.layers.1:out"] == i
        truth = kept[0] if isinstance(kept[0], torch.Tensor) else kept[0][0]
        rows = batch.rows["model.layers.1:out"][mine.to("cuda")]
        torch.testing.assert_close(rows, truth[0], rtol=1e-3, atol=1e-4)
