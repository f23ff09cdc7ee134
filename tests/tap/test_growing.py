"""Rows taken while a model generates: those of its outputs call by call, in bounded memory."""

import gc

import pytest
import torch
from torch import Tensor

import sonde.tap.streams.live
from models import gpt2, llama
from narrow import expect, present
from sonde.core.inputs import Model
from sonde.core.site import Reducer
from sonde.tap import live_stream, replay
from sonde.tap.generating.recorder import RecordedOutput
from sonde.tap.generating.replay import ReplayInputs
from sonde.tap.rows.frame import Frame
from tap_inputs import Texts

ITEMS = [[1, 5, 6, 7], [1, 8], [1, 9, 10]]
NEW = 6
BLOCKS = {"gpt2": "transformer.h.2", "llama": "model.layers.2"}
REDUCERS = ("mean", "tokens", "last", "cls")


def causal(module) -> Model:
    return Model(module, config=module.config, task="causal")


def stream_of(module, reducer, side="right", special=False, further=(), sinks="auto", **settings):
    prompts = Texts(ITEMS, batch_size=3, side=side, special=special)
    how = {"max_new_tokens": NEW, "do_sample": False} | settings
    inputs = replay(causal(module), prompts, **how)
    sites = BLOCKS[module.config.model_type]
    return live_stream(
        causal(module), inputs, sites, reducer, further=further, logits=False, sinks=sinks
    )


def an_end(module) -> int:
    """Return a token that ends a text while others go on."""
    batch = next(iter(stream_of(module, "last")))
    tokens = batch.extra["generated"]
    for token in tokens.flatten().tolist():
        first = [row.index(token) if token in row else NEW for row in tokens.tolist()]
        if min(first) < NEW - 2 < max(first):
            return token
    raise AssertionError("no token ends one text early")


def watched(module, stream) -> tuple[sonde.tap.streams.live.Batch, Tensor, int]:
    """Return a batch, the outputs of the block's calls side by side, and how many there were."""
    calls: list[Tensor] = []
    _ = stream.schema, stream.found_sinks
    handle = module.get_submodule(BLOCKS[module.config.model_type]).register_forward_hook(
        lambda m, a, o: calls.append((o if isinstance(o, Tensor) else o[0]).clone())
    )
    (batch,) = stream.batches(0, len(ITEMS))
    handle.remove()
    return batch, torch.cat(calls, dim=1), len(calls)


@pytest.mark.parametrize(
    ("build", "side", "ends"),
    [(gpt2, "left", True), (gpt2, "right", False), (llama, "left", False), (llama, "right", True)],
)
@pytest.mark.truth("the outputs of the same calls, hooked and reduced by hand")
def test_rows_are_those_of_the_calls_of_generation(build, side, ends):
    module = build()
    end = an_end(module) if ends else None
    stream = stream_of(module, "mean", side, further=REDUCERS[1:], eos_token_id=end)
    batch, outputs, n_calls = watched(module, stream)
    longest = max(map(len, ITEMS))
    assert n_calls == 1 + NEW  # the prompts, each new token, and no forward over it all
    assert outputs.shape[1] == longest + NEW
    key = next(iter(batch.rows))
    lengths = batch.extra["generated_length"]
    assert ends == bool(lengths.min() < NEW)
    for i, item in enumerate(ITEMS):
        mine = outputs[i, longest - len(item) : longest + int(lengths[i])]
        found = batch.rows[key][batch.example[key] == i]
        torch.testing.assert_close(found[0], mine.mean(dim=0), rtol=1e-5, atol=1e-6)
        for name, wanted in {"tokens": mine, "last": mine[-1:], "cls": mine[:1]}.items():
            of_name = f"{key}|{name}"
            assert torch.equal(batch.rows[of_name][batch.example[of_name] == i], wanted)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.truth("the outputs of the same calls, without the tokens that are special")
def test_special_tokens_are_left_out_of_means_and_tokens(keep):
    module = llama()
    end = an_end(module)
    for reducer in ("mean", "tokens"):
        stream = stream_of(
            module, Reducer(reducer, keep_special=keep), special=True, eos_token_id=end
        )
        batch, outputs, _ = watched(module, stream)
        key, longest = next(iter(batch.rows)), max(map(len, ITEMS))
        for i, item in enumerate(ITEMS):
            n_new = int(batch.extra["generated_length"][i])
            ids = torch.tensor([*item, *batch.extra["generated"][i, :n_new].tolist()])
            counts = torch.ones(len(ids), dtype=torch.bool)
            if not keep:  # 1 begins the prompts, the end is special too
                counts[0], counts[len(item) :] = False, ids[len(item) :] != end
            mine = outputs[i, longest - len(item) : longest + n_new][counts]
            found = batch.rows[key][batch.example[key] == i]
            wanted = mine if reducer == "tokens" else mine.mean(dim=0, keepdim=True)
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_what_stands_behind_an_end_or_before_a_prompt_is_not_summed():
    module = llama()
    stream = stream_of(module, "mean", eos_token_id=an_end(module))
    _ = stream.schema
    clean = next(iter(stream))

    def broken(m, args, kwargs, output):
        hidden = output if isinstance(output, Tensor) else output[0]
        seen.append(hidden.shape[1])
        start = sum(seen[:-1])
        hidden[dead[:, start : start + hidden.shape[1]]] = torch.nan
        return output

    raw = next(stream.inputs.batches(0, 3))
    dead, seen = ~present(raw.mask), []
    block = module.get_submodule(BLOCKS["llama"])
    handle = block.register_forward_hook(broken, with_kwargs=True)
    found = next(stream.batches(0, 3))
    handle.remove()
    assert bool(dead.any())
    key = next(iter(clean.rows))
    assert torch.equal(found.rows[key], clean.rows[key])


def test_rows_of_sampled_texts_repeat_bit_for_bit_and_are_those_of_one_more_forward(monkeypatch):
    module = llama()
    stream = stream_of(module, "mean", further=REDUCERS[1:], do_sample=True)
    first, second = (next(iter(stream)) for _ in range(2))
    monkeypatch.setattr(sonde.tap.streams.live, "may_record", lambda *_: False)
    replayed = next(iter(stream_of(module, "mean", further=REDUCERS[1:], do_sample=True)))
    assert len(first.rows) == len(REDUCERS)
    for key, x in first.rows.items():
        assert torch.equal(x, second.rows[key])
        torch.testing.assert_close(x, replayed.rows[key], rtol=1e-4, atol=2e-6)
        assert torch.equal(first.position[key], replayed.position[key])


@pytest.mark.slow
def test_outputs_are_let_go_of_step_by_step():
    module = llama()
    stream = stream_of(
        module, "mean", further=("last", "cls"), max_new_tokens=12, eos_token_id=None
    )
    _ = stream.schema
    _ = stream.schema, stream.found_sinks
    calls, alive = [], []

    def count(*_: object) -> None:
        calls.append(1)
        if len(calls) in (4, 13):  # each look walks over every object that there is
            alive.append(n_steps_alive())

    handle = module.register_forward_hook(count)
    next(iter(stream))
    handle.remove()
    assert len(calls) == 13
    assert alive[1] <= alive[0] + 2


def test_all_tokens_are_let_go_of_once_they_are_rows():
    stream = stream_of(module := llama(), "tokens")
    inputs, block = expect(ReplayInputs, stream.inputs), module.model.layers[1]
    tapped_sites = {"norm": RecordedOutput(block.input_layernorm, None, stream.kinds[0].reduction)}
    batch, recorder = inputs.record(next(inputs.prompt_batches(0, 3)), tapped_sites)
    assert recorder.rows(Frame(batch)) is not None
    assert recorder.rows(Frame(batch)) is None


def n_steps_alive() -> int:
    """Return how many outputs over one new token of each text there are."""
    return sum(issubclass(type(x), Tensor) and x.shape == (3, 1, 32) for x in gc.get_objects())


def test_a_module_that_runs_twice_in_a_step_gives_no_rows():
    module = llama()
    stream = stream_of(module, "tokens")
    block, (kind,) = module.model.layers[1], stream.kinds
    inputs = expect(ReplayInputs, stream.inputs)
    prompts = next(inputs.prompt_batches(0, 3))
    tapped_sites = {"norm": RecordedOutput(block.input_layernorm, None, kind.reduction)}
    for is_shared in (False, True):
        if is_shared:
            block.post_attention_layernorm = block.input_layernorm
        batch, recorder = inputs.record(prompts, tapped_sites)
        assert (recorder.rows(Frame(batch)) is None) == is_shared


@pytest.mark.truth("one more forward pass over the finished texts")
@pytest.mark.parametrize("sinks", ["first", "special", "first,special"])
def test_sinks_in_an_answer_are_those_of_one_more_forward(monkeypatch, sinks):
    module = llama()
    end = an_end(module)
    found = []
    for records in (True, False):
        monkeypatch.setattr(sonde.tap.streams.live, "may_record", lambda _, yes=records: yes)
        stream = stream_of(
            module, "mean", special=True, further=REDUCERS[1:], eos_token_id=end, sinks=sinks
        )
        batch, outputs, _ = watched(module, stream)
        assert (outputs.shape[1] == max(map(len, ITEMS)) + NEW) == records
        found.append(batch)
    recorded, read_again = found
    assert torch.equal(recorded.extra["generated"], read_again.extra["generated"])
    assert end in recorded.extra["generated"]
    assert len(recorded.rows) == len(REDUCERS)
    for key, x in recorded.rows.items():
        torch.testing.assert_close(x, read_again.rows[key], rtol=1e-4, atol=2e-6)
        assert torch.equal(recorded.position[key], read_again.position[key])
    for name in ("sink", "special"):
        mine, theirs = getattr(recorded, name), getattr(read_again, name)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(x, theirs[key]) for key, x in mine.items())
