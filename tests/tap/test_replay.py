"""States of generated text: generate first, then read the whole."""

import pytest
import torch

from models import gpt2, llama, mamba, mlp, t5
from narrow import present
from sonde.core.errors import InputError, SiteError
from sonde.core.inputs import Model
from sonde.tap import Tap, live_stream, replay
from tap_inputs import Arrays, Texts, padded
from tap_snapshot import assert_unchanged, snapshot

PROMPTS = Texts([[1, 5, 6, 7], [1, 8], [1, 9, 10]], batch_size=3, special=False)


def causal(module) -> Model:
    return Model(module, config=module.config, task="causal")


@pytest.mark.slow
@pytest.mark.parametrize("build", [gpt2, llama, mamba], ids=["gpt2", "llama", "mamba"])
@pytest.mark.truth("states recorded during greedy generation, call by call")
def test_replayed_states_equal_those_of_generation(build):
    network = build()
    model = causal(network)
    prompt = Texts([[1, 5, 6, 7]], special=False)
    site = {"gpt2": "h.1", "llama": "layers.1", "mamba": "layers.1"}[model.config.model_type]
    calls = []
    block = model.module.get_submodule(
        next(n for n, _ in model.module.named_modules() if n.endswith(site))
    )
    handle = block.register_forward_hook(
        lambda m, a, o: calls.append((o if isinstance(o, torch.Tensor) else o[0]).clone())
    )
    ids, mask = padded(prompt.items)
    with torch.no_grad():
        text = network.generate(
            ids, attention_mask=mask.long(), max_new_tokens=5, do_sample=False, pad_token_id=0
        )
    handle.remove()
    assert [c.shape[1] for c in calls] == [4, 1, 1, 1, 1][: len(calls)]
    inputs = replay(model, prompt, max_new_tokens=5, do_sample=False)
    (raw,) = inputs.batches(0, 1)
    assert torch.equal(raw.kwargs["input_ids"], text)
    (batch,) = live_stream(model, inputs, site, "tokens").batches(0, 1)
    (rows,) = batch.rows.values()
    live = torch.cat(calls, dim=1)[0]
    assert len(rows) == len(live) + 1 == text.shape[1]
    torch.testing.assert_close(rows[:-1], live, rtol=1e-4, atol=1e-6)
    assert batch.extra["prompt_length"].tolist() == [4]


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"do_sample": True}, {"do_sample": False}])
def test_every_way_of_decoding_is_read_again_with_the_same_bits(settings):
    model = causal(llama())
    before = snapshot(model.module)
    inputs = replay(model, PROMPTS, max_new_tokens=6, seed=4, **settings)
    first, second = (next(inputs.batches(0, 3)) for _ in range(2))
    assert_unchanged(before, model.module)
    assert torch.equal(first.kwargs["input_ids"], second.kwargs["input_ids"])
    stream = live_stream(model, inputs, reducer="tokens")
    batch = next(iter(stream))
    assert len(batch.rows["model.layers.0:out"]) == int(present(first.mask).sum())
    assert batch.ids == ["text0", "text1", "text2"]
    for i, length in enumerate(present(first.length).tolist()):
        mine = batch.example["model.layers.0:out"] == i
        assert batch.position["model.layers.0:out"][mine].tolist() == list(range(length))


def test_sampling_differs_by_seed_and_leaves_the_global_state():
    model = causal(llama())
    state = torch.get_rng_state()
    found = [
        next(replay(model, PROMPTS, max_new_tokens=8, do_sample=True, seed=s).batches(0, 3))
        for s in (0, 1)
    ]
    assert not torch.equal(found[0].kwargs["input_ids"], found[1].kwargs["input_ids"])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.truth("the mask counted by hand")
def test_positions_after_the_first_end_are_masked():
    module = llama()
    with torch.no_grad():
        greedy = module.generate(
            torch.tensor([[1, 8]]),
            attention_mask=torch.ones(1, 2).long(),
            max_new_tokens=3,
            do_sample=False,
            pad_token_id=0,
        )[0]
    end = int(greedy[3])
    inputs = replay(causal(module), PROMPTS, max_new_tokens=6, do_sample=False, eos_token_id=end)
    batch = next(inputs.batches(0, 3))
    ids, mask = batch.kwargs["input_ids"][1], present(batch.mask)[1]
    generated = ids[4:]
    first_end = generated.tolist().index(end)
    assert mask[:4].tolist() == [False, False, True, True]
    assert mask[4:].tolist() == [i <= first_end for i in range(len(generated))]
    assert int(present(batch.length)[1]) == 2 + first_end + 1


def test_an_encoder_decoder_reads_the_generated_target():
    module = t5()
    model = Model(module, config=module.config, task="seq2seq")
    inputs = replay(model, PROMPTS, max_new_tokens=4, do_sample=False)
    stream = live_stream(model, inputs, ["encoder.block.0", "decoder.block.0"], "tokens")
    batch, raw = next(iter(stream)), next(inputs.batches(0, 3))
    assert len(batch.rows["decoder.block.0:out"]) == int(present(raw.decoder_mask).sum())
    assert len(batch.rows["encoder.block.0:out"]) == 9


def test_identity_names_settings_and_prompts():
    model = causal(llama())
    one, two = (replay(model, PROMPTS, max_new_tokens=n).identity() for n in (3, 4))
    assert one["generate"] == {"max_new_tokens": "3"}
    assert one != two


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}])
def test_generation_inside_a_live_tap_is_refused(settings):
    module = llama()
    ids = torch.tensor([[1, 5, 6]])
    with Tap(module, "layers.0"), pytest.raises(SiteError, match=r"replay\(model, inputs\)"):
        module.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, **settings)
    module(ids)


def test_what_cannot_be_replayed_is_refused():
    with pytest.raises(InputError, match="a model that generates, got Sequential"):
        replay(Model(mlp()), Arrays(torch.ones(2, 8)))
    with pytest.raises(InputError, match="one sequence for each prompt"):
        replay(causal(llama()), PROMPTS, num_return_sequences=2, do_sample=True)
