"""A model in vLLM against the same model in transformers; ``make test-vllm`` installs vLLM."""

import json

import pytest
import torch

import sonde
from sonde.core import InputError
from sonde.core.edit import Add, Project
from sonde.detect import KNN, Mahalanobis
from sonde.engines._engine import Engine
from sonde.tap import TokenIds, editing
from vllm_case import in_order, probe_of, texts

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def both(folder):
    """The model in transformers, and in a vLLM that reads prompts in pieces of 32 tokens."""
    from sonde.engines.vllm import on_vllm

    plain = sonde.load(folder, device="cpu")
    options = {"max_num_batched_tokens": 32, "max_model_len": 128, "enable_chunked_prefill": True}
    return plain, on_vllm(sonde.load(folder, device="cpu"), max_num_seqs=4, **options)


def rows(model, data, **options):
    stream = sonde.read(model, data, **options)
    return [batch for batch in stream], stream


@pytest.mark.truth("transformers, whose model the folder is")
@pytest.mark.parametrize("reducer", ["tokens", "mean", "last"])
def test_states_are_those_of_transformers(both, reducer):
    data = texts(12, 1)
    here, there = (rows(m, data, sites="blocks", reducer=reducer)[0] for m in both)
    for mine, theirs in zip(here, there, strict=True):
        assert mine.ids == theirs.ids
        for key, x in mine.rows.items():
            y = theirs.rows[key]
            gap = (x - y).norm(dim=1) / x.norm(dim=1)
            assert gap.max() < 1e-5
            assert torch.equal(mine.position[key], theirs.position[key])


@pytest.mark.truth("the same states in float32; those of transformers in bfloat16 are as far away")
def test_bfloat16_rounds_as_in_transformers(folder):
    from sonde.engines.vllm import on_vllm

    exact, plain, half = (
        sonde.load(folder, device="cpu", dtype=kind) for kind in ("float32", *2 * ["bfloat16"])
    )
    models = exact, plain, on_vllm(half, max_model_len=128)
    each = [rows(m, texts(12, 1), sites="blocks", reducer="tokens")[0] for m in models]
    gaps = [[], []]
    for true, *rounded in zip(*each, strict=True):
        for key, x in true.rows.items():
            for own, batch in zip(gaps, rounded, strict=True):
                assert batch.rows[key].dtype == torch.bfloat16
                own.append((batch.rows[key].float() - x).norm(dim=1) / x.norm(dim=1))
    here, there = map(torch.cat, gaps)
    assert there.median() < 1.3 * here.median() < 0.05
    assert there.max() < 2 * here.max()


@pytest.mark.truth("sonde.score with transformers")
def test_what_one_engine_fitted_scores_rows_of_the_other(both, tmp_path):
    files = []
    for i, model in enumerate(both):
        stream = sonde.read(model, texts(40, 2), sites="blocks", reducer="mean")
        fitted = sonde.fit([Mahalanobis(shrinkage=0.2), KNN(k=3)], stream, calibrate=0)
        fitted = sonde.calibrate(fitted, both[1 - i], texts(30, 3))
        fitted.save(tmp_path / f"{i}.sonde")
        files.append(fitted)
    tables = [sonde.score(f, m, texts(10, 4)).to_pydict() for f in files for m in both]
    for table in tables[1:]:
        assert table["id"] == tables[0]["id"]
        assert table["score"] == pytest.approx(tables[0]["score"], rel=1e-3)


@pytest.mark.truth("generate of transformers, greedy")
@pytest.mark.parametrize("reducer", ["mean", "tokens", "last"])
def test_generated_texts_and_their_states(both, reducer):
    data, ends = texts(6, 5), None
    for round_ in range(2):
        how = {"max_new_tokens": 12, "eos_token_id": ends}
        options = {"sites": "blocks", "reducer": reducer, "generate": how, "batch_size": 3}
        here, there = (rows(m, data, **options)[0] for m in both)
        for mine, theirs in zip(here, there, strict=True):
            assert torch.equal(mine.extra["generated"], theirs.extra["generated"])
            for key, x in mine.rows.items():
                assert torch.equal(mine.position[key], theirs.position[key])
                gap = (x - theirs.rows[key]).norm(dim=1) / x.norm(dim=1)
                assert gap.max() < 1e-5
        lengths = torch.cat([batch.extra["generated_length"] for batch in there])
        assert (lengths.min() < 8 < lengths.max()) == bool(round_)
        ends = [here[0].extra["generated"][0, 3].item(), here[1].extra["generated"][1, 6].item()]


def test_states_of_generated_tokens_are_taken_from_the_steps(both, monkeypatch):
    runs = []
    run = Engine.run

    def count(self, texts, settings):
        runs.append(len(texts))
        return run(self, texts, settings)

    monkeypatch.setattr(Engine, "run", count)
    how = {"max_new_tokens": 12, "eos_token_id": []}
    stream = sonde.read(both[1], texts(6, 5), sites="blocks", reducer="mean", generate=how)
    first = list(stream)  # with the checks of a stream
    runs.clear()
    assert len(list(stream)) == len(first) == len(runs)  # no pass over the finished texts


def prompts_of(model, n, seed):
    batch = [model.processor(one["text"])["input_ids"] for one in texts(n, seed)]
    width = max(map(len, batch))
    ids = torch.tensor([[0] * (width - len(x)) + x for x in batch])
    mask = torch.tensor([[0] * (width - len(x)) + [1] * len(x) for x in batch])
    return {"input_ids": ids, "attention_mask": mask}


GREEDY = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}


@pytest.mark.truth("generate of transformers under the same edits, greedy")
@pytest.mark.parametrize("where", ["all", "generated", "last", [1, 5], TokenIds((7, 20))])
def test_edited_texts_and_states(both, where):
    at, generator = "model.layers.1", torch.Generator().manual_seed(8)
    directions = torch.randn(2, 128, generator=generator)
    edits = [Add(directions[0], 3.0), Project(directions[1])]
    found = []
    for model in both:
        given = prompts_of(model, 5, 6)
        plain = model.module.generate(**given, **GREEDY)
        with editing(model, edits[0], at, where), editing(model, edits[1], "model.layers.0"):
            out = model.module.generate(**given, **GREEDY)
            last = {"sites": ["model.layers.1", "model.layers.2"], "reducer": "last"}
            x = rows(model, texts(4, 7), **last)[0][0].rows if where != "generated" else {}
        assert torch.equal(model.module.generate(**given, **GREEDY), plain)  # taken back
        found.append((plain, out, x))
    (plain, out, x), (other_plain, other_out, other_x) = found
    assert torch.equal(plain, other_plain)
    assert torch.equal(out, other_out)
    assert not torch.equal(out, plain)
    for key, mine in x.items():
        assert torch.allclose(mine, other_x[key], rtol=0, atol=float(1e-5 * mine.abs().max()))


@pytest.mark.truth("a guard on the model in transformers")
def test_a_guard_scores_what_is_generated(both):
    probe, found = probe_of(both[0]), []
    for model in both:
        with sonde.Guard(model, probe) as guard:
            model.module.generate(**prompts_of(model, 5, 9), **GREEDY)
        found.append(guard.last())
    here, there = found
    assert in_order(there) == in_order(here)
    assert len(there.alarms) == len(here.alarms) > 0


def test_what_cannot_be_read_is_refused_by_name(both):
    model = both[1]
    with pytest.raises(sonde.SondeError, match="did not run in the probe forward"):
        rows(model, texts(2, 6), sites="model.layers.1.mlp")
    with pytest.raises(InputError, match=r"num_beams=2.*leave engine out"):
        rows(model, texts(2, 6), sites="blocks", generate={"max_new_tokens": 4, "num_beams": 2})
    with pytest.raises(InputError, match=r"at most 128 tokens with.*got 201.*max_model_len"):
        rows(model, [{"text": "w1 " * 200}], sites="blocks")
    with pytest.raises(InputError, match="expected engine='vllm' with the name of a model"):
        sonde.read(model, texts(2, 6), engine="vllm")


def test_without_vllm_the_package_is_named(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vllm", None)
    with pytest.raises(InputError, match=r"expected the package vllm.*pip install vllm"):
        sonde.load(folder, engine="vllm")


def test_other_engines_and_other_models():
    with pytest.raises(InputError, match=r"among transformers, vllm, got 'vlm'"):
        sonde.load("sonde:stdlib", engine="vlm")
    with pytest.raises(InputError, match="expected a language model from a folder"):
        sonde.load("sonde:digits", engine="vllm")


def test_the_command_refuses_what_needs_transformers(tmp_path):
    from cli_case import run_words

    data = tmp_path / "t.jsonl"
    data.write_text(json.dumps({"text": "def f(x): return x"}) + "\n")
    ran = run_words("explain", "sonde:stdlib", data, "--engine", "vllm")
    assert "--engine vllm: this command needs transformers itself" in ran.error()
