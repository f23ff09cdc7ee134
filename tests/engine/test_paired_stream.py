"""Aligned runs as one stream of pairs."""

import pytest
import torch

import sonde
from models import gpt2, mlp
from sonde.core import InputError, Model, Stream
from sonde.measure import Procrustes
from sonde.stats import CrossMoments
from sonde.tap import PairedStream, live_stream
from tap_inputs import Arrays, Texts, texts


@pytest.mark.truth("each text run alone, its tokens matched one by one")
def test_texts_of_other_lengths_stay_beside_their_partners():
    clean = texts((7, 4, 6, 3, 5))
    shorter = Texts([[*t[:-1], 60] if i % 2 else t[:-1] for i, t in enumerate(clean.items)])
    net = gpt2()
    model = Model(net, task="causal")
    sides = {"clean": live_stream(model, clean, ["h.1"], "tokens")}
    sides["short"] = live_stream(model, shorter, ["h.1"], "tokens")
    (batch,) = list(PairedStream(sides))
    assert batch.order.tolist() == [0, 1, 2, 3, 4]
    site = "transformer.h.1:out"
    for name, inputs in (("clean", clean), ("short", shorter)):
        rows, example = batch.rows[f"{name}/{site}"], batch.example[f"{name}/{site}"]
        for i, item in enumerate(inputs.items):
            with torch.no_grad():
                alone = net.transformer(torch.tensor([item]), output_hidden_states=True)
            expected = alone.hidden_states[2][0][1:]
            assert torch.allclose(rows[example == i], expected, atol=1e-5)
    fitted = sonde.fit(Procrustes(), PairedStream(sides), progress=False)
    assert len(fitted.names) == 1


@pytest.mark.slow
@pytest.mark.truth("products of the two models' rows by hand")
def test_two_models_on_one_data_set():
    base, tuned = mlp(), mlp(seed=1)
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    sides = {n: live_stream(Model(m), Arrays(x), ["2"]) for n, m in (("a", base), ("b", tuned))}
    stream = PairedStream(sides)
    assert len(stream) == 300
    assert [s.key for s in stream.schema] == ["a/2:out", "b/2:out"]
    states = [
        CrossMoments().observe(batch.rows["a/2:out"], batch.rows["b/2:out"]) for batch in stream
    ]
    total = CrossMoments().merge(*states) if len(states) == 2 else states[0]
    with torch.no_grad():
        first, second = base[:3](x).double(), tuned[:3](x).double()
    expected = (first - first.mean(0)).T @ (second - second.mean(0))
    assert torch.allclose(total.cross, expected, atol=1e-4)


def test_runs_that_do_not_belong_together_are_refused():
    one, two = Stream.of(torch.ones(4, 2)), Stream.of(torch.ones(3, 2))
    with pytest.raises(InputError, match=r"got \{'a': 4, 'b': 3\}"):
        PairedStream({"a": one, "b": two})
    with pytest.raises(InputError, match="at least two streams under plain names"):
        PairedStream({"a/b": one, "c": one})
