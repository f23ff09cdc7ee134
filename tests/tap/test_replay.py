"""States of generated text: generate first, then read the whole."""

from itertools import product
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from models import gpt2, llama, mamba, mlp, opt, qwen2, t5
from narrow import present
from sonde.core.errors import InputError, SiteError
from sonde.core.inputs import Model
from sonde.findings.evidence.modules.small_forwards import Trials
from sonde.run.reading.read import read
from sonde.tap import Tap, live_stream, replay
from sonde.tap.model.seeding import seed_devices
from tap_inputs import Arrays, Texts, padded
from tap_snapshot import assert_unchanged, snapshot

PROMPTS = Texts([[1, 5, 6, 7], [1, 8], [1, 9, 10]], batch_size=3, special=False)


def causal(module) -> Model:
    return Model(module, config=module.config, task="causal")


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


def test_devices_without_a_part_of_the_model_are_not_seeded(monkeypatch):
    model, seeded = causal(llama()), []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    torch.manual_seed(3)
    assert seeded == [3]
    next(replay(model, PROMPTS, max_new_tokens=2, do_sample=True, seed=7).batches(0, 3))
    trial = Trials(live_stream(model, PROMPTS, "blocks", "tokens"))
    trial.read(next(iter(PROMPTS.batches(0, 3))), range(3), seed=7)
    assert seeded == [3]


@pytest.mark.truth("what torch.manual_seed draws")
def test_seeded_devices_draw_what_torch_draws():
    model = llama()
    torch.manual_seed(5)
    truth = torch.rand(3)
    seed_devices(model, 5)
    assert torch.equal(torch.rand(3), truth)


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


def end_of_the_first(module):
    """The third token that greedy decoding puts after the first prompt."""
    free = next(replay(causal(module), PROMPTS, max_new_tokens=6, do_sample=False).batches(0, 3))
    return int(free.columns["generated"][0, 2])


@pytest.mark.truth("the same settings by keyword")
@pytest.mark.parametrize("beams", [1, 2])
def test_settings_of_a_generation_config_are_heeded(beams):
    model = causal(gpt2())
    how = {"max_new_tokens": 6, "do_sample": False, "num_beams": beams}
    how |= {"eos_token_id": end_of_the_first(model.module), "pad_token_id": 0}
    config = GenerationConfig(**how | {"max_new_tokens": 9})
    both = (
        replay(model, PROMPTS, **how),
        replay(model, PROMPTS, generation_config=config, max_new_tokens=6),
    )
    assert both[0].identity() == both[1].identity()
    for name in ("new_tokens", "keeps_rows_in_place"):
        assert len({getattr(inputs.generation, name) for inputs in both}) == 1
    want, found = (next(inputs.batches(0, 3)) for inputs in both)
    assert torch.equal(want.kwargs["input_ids"], found.kwargs["input_ids"])
    assert beams > 1 or found.columns["generated_length"].min() < 6
    assert torch.equal(present(want.mask), present(found.mask))


@pytest.mark.truth("the same end as a token")
def test_texts_that_no_token_ends_come_one_by_one():
    module = gpt2()
    end, how = end_of_the_first(module), {"max_new_tokens": 6, "do_sample": False}

    class IsEnd(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs) -> Any:
            return input_ids[:, -1] == end

    def lengths(size, **more):
        prompts = Texts(PROMPTS.items, batch_size=size, special=False)
        batches = replay(causal(module), prompts, **how, **more).batches(0, 3)
        return [n for batch in batches for n in batch.columns["generated_length"].tolist()]

    criteria = StoppingCriteriaList([IsEnd()])
    assert lengths(1, stopping_criteria=criteria) == lengths(3, eos_token_id=end)
    for more in ({"stopping_criteria": criteria}, {"stop_strings": ["x"]}):
        with pytest.raises(
            InputError,
            match=rf"one prompt at a time, got \d in .*: texts end by {next(iter(more))}",
        ):
            lengths(3, **more)


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
    with pytest.raises(InputError, match="one generated sequence for each prompt"):
        replay(causal(llama()), PROMPTS, num_return_sequences=2, do_sample=True)


WAYS = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True},
    "beams": {"num_beams": 3, "length_penalty": -3.0, "early_stopping": True},
    "no cache": {"do_sample": False, "use_cache": False},
    "lookup": {"do_sample": False, "prompt_lookup_num_tokens": 3},
}


def alone(network, tokens: list[int], place: str, **more: torch.Tensor) -> torch.Tensor:
    """Return the outputs of one module over one text without padding, by a hook of our own."""
    kept: list[torch.Tensor] = []
    handle = network.get_submodule(place).register_forward_hook(
        lambda m, a, o: kept.append((o if isinstance(o, torch.Tensor) else o[0])[0].clone())
    )
    with torch.no_grad():
        network(torch.tensor([tokens]), **more)
    handle.remove()
    return kept[0]


def an_end(network, settings) -> int:
    """Return a token that ends some prompts early and others not."""
    how = {"max_new_tokens": 6, "seed": 4} | settings
    free = next(replay(causal(network), PROMPTS, eos_token_id=None, **how).batches(0, 3))
    likely = free.columns["generated"].unique().tolist()
    for token in (*likely, *range(3, 61)):
        options = how | {"eos_token_id": token}
        batch = next(replay(causal(network), PROMPTS, **options).batches(0, 3))
        found = set(batch.columns["generated_length"].tolist())
        if len(found) > 1 and min(found) < 6:
            return token
    raise AssertionError("no token ends one text early")


CASES = [
    *(("greedy", build, "left") for build in (gpt2, qwen2, mamba)),
    *(("greedy", build, "right") for build in (llama, opt)),
    ("beams", gpt2, "right"),
    ("beams", llama, "left"),
    ("beams", mamba, "right"),
    ("sampling", gpt2, "left"),
    ("sampling", llama, "right"),
    ("no cache", llama, "right"),
    ("lookup", gpt2, "right"),
]


@pytest.mark.parametrize(("way", "build", "side"), CASES)
@pytest.mark.truth("each generated text alone in a plain forward, hooked by hand")
def test_rows_of_generated_texts_are_those_of_each_text_alone(way, build, side):
    network, settings = build(), WAYS[way]
    if way == "lookup":
        prompts = Texts([[1, 5, 6, 7, 5, 6]], batch_size=1, special=False)
        ends = None
    else:
        prompts = Texts(PROMPTS.items, batch_size=3, side=side, special=False)
        ends = an_end(network, settings)
    inputs = replay(
        causal(network), prompts, max_new_tokens=6, seed=4, eos_token_id=ends, **settings
    )
    batches = [  # rows as they arise; with logits those of one more forward
        next(iter(live_stream(causal(network), inputs, "blocks", "tokens", logits=logits)))
        for logits in (False, True)
    ]
    assert batches[0].rows.keys() == batches[1].rows.keys()
    (raw,) = inputs.batches(0, len(prompts))
    texts = [x[m].tolist() for x, m in zip(raw.kwargs["input_ids"], present(raw.mask), strict=True)]
    for (i, tokens), key in product(enumerate(texts), batches[0].rows):
        n = len(prompts.items[i])
        truth = alone(network, tokens, key.removesuffix(":out"))
        assert tokens[:n] == list(prompts.items[i])
        for batch in batches:
            assert int(batch.extra["prompt_length"][i]) == n
            assert int(batch.extra["generated_length"][i]) == len(tokens) - n
            assert tokens[n:] == [t for t in batch.extra["generated"][i].tolist() if t >= 0]
            mine = batch.example[key] == i
            assert len(truth) == len(tokens) == int(mine.sum())
            assert batch.position[key][mine].tolist() == list(range(len(truth)))
            torch.testing.assert_close(batch.rows[key][mine], truth, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.truth("each generated text alone in a plain forward, with the types of generate")
def test_new_tokens_have_the_type_of_the_last_one(logits):
    network = gpt2()
    types = {3: [0, 0, 1], 2: [0, 2]}
    items = [{"input_ids": list(range(5, 5 + n)), "token_type_ids": t} for n, t in types.items()]
    how = {"max_new_tokens": 4, "do_sample": False}
    stream = read(network, items, "h.1", "tokens", generate=how, logits=logits)
    (batch,) = stream
    assert len(batch) == 2
    for i in range(2):
        mine = batch.example["transformer.h.1:out"] == i
        n = int(batch.extra["prompt_length"][i])
        ids = [*range(5, 5 + n), *batch.extra["generated"][i].tolist()]
        of_prompt = torch.tensor([types[n]])
        with torch.no_grad():
            again = network.generate(
                torch.tensor([ids[:n]]), attention_mask=torch.ones(1, n).long(), pad_token_id=0,
                token_type_ids=of_prompt, **how,
            )  # fmt: skip
        assert again[0].tolist() == ids
        whole = torch.cat((of_prompt, of_prompt[:, -1:].expand(1, 4)), dim=1)
        truth = alone(network, ids, "transformer.h.1", token_type_ids=whole)
        torch.testing.assert_close(
            batch.rows["transformer.h.1:out"][mine], truth, rtol=1e-4, atol=2e-6
        )


def test_nothing_is_generated_for_the_schema_or_the_first_batch():
    model = causal(llama())
    stream = live_stream(
        model, replay(model, PROMPTS, max_new_tokens=20, do_sample=False), "blocks", "tokens"
    )
    ran = []
    handle = model.module.register_forward_hook(lambda m, a, o: ran.append(1))
    assert [s.dim for s in stream.schema] == [32, 32, 32]
    first = stream.first_batch()
    handle.remove()
    assert len(ran) < 20  # the tokens that would be generated
    assert len(first.rows["model.layers.0:out"]) == 4 + 2 + 2 * 20


def test_a_setting_that_generate_does_not_know_is_refused():
    inputs = replay(causal(llama()), PROMPTS, max_new_tokenz=3)
    with pytest.raises(
        InputError, match=r"LlamaForCausalLM.generate does not take .*max_new_tokenz"
    ):
        next(inputs.batches(0, 3))
