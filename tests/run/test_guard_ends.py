"""A sequence that has ended brings no rows while ``generate`` goes on with others of its batch."""

import pytest
import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, LogitsProcessor

from cache_name import CACHE
from sonde import Guard
from sonde.core import InputError, Model
from sonde.detect import MSP, NAC, Mahalanobis
from sonde.run.fitting.fit import fit
from sonde.tap import Tap, cache_of, live_stream
from tap_inputs import Texts, padded

END, PAD, NEW = 1, 0, 8
DRAW = torch.Generator().manual_seed(0)
ITEMS = [torch.randint(3, 64, (4 + i % 8,), generator=DRAW).tolist() for i in range(120)]
PROMPTS = [ITEMS[0], ITEMS[7], [9, END, 8, END], ITEMS[4]]
LENGTHS = (3, 0, NEW, 1)  # tokens before each one's end


class EndAt(LogitsProcessor):
    """Lets each sequence end after its number of new tokens, and not before."""

    def __init__(self, prompt: int, lengths: tuple[int, ...], end: int) -> None:
        self.prompt, self.lengths, self.end = prompt, torch.tensor(lengths), end

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        ends = self.lengths == input_ids.shape[1] - self.prompt
        scores = scores.clone()
        scores[~ends, self.end] = -torch.inf
        scores[ends] = -torch.inf
        scores[ends, self.end] = 0.0
        return scores


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2, n_embd=32, n_head=2, vocab_size=64, n_positions=64, bos_token_id=END,
        eos_token_id=END, pad_token_id=PAD,
    )  # fmt: skip
    return Model(GPT2LMHeadModel(config).eval(), config=config, task="causal")


@pytest.fixture(params=["tokens", "last"])
def probe(request, model):
    texts = Texts(ITEMS, special=False)
    stream = live_stream(model, texts, "blocks", request.param, objective="kl_uniform")
    return fit([Mahalanobis(), MSP(), NAC()], stream, progress=False)


def generated(model, prompts, lengths, guard, end=END, **settings):
    ids, mask = padded(prompts, "left")
    forced = [EndAt(ids.shape[1], lengths, end)]
    with guard, torch.no_grad():
        return model.module.generate(
            input_ids=ids, attention_mask=mask.long(), max_new_tokens=NEW,
            logits_processor=forced, **settings,
        )  # fmt: skip


def assert_as_alone(model, guard, alone, **settings):
    """Assert that each sequence has the rows that it has in a batch of one, and no others."""
    alarms = []
    for i, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS, strict=True)):
        generated(model, [prompt], (length,), alone, **settings)
        for name, want in alone.scores.items():
            mine = guard.example[name] == i
            assert guard.position[name][mine].tolist() == alone.position[name].tolist()
            torch.testing.assert_close(guard.scores[name][mine], want, rtol=1e-4, atol=1e-5)
        alarms += [(i, a.method, a.site, a.position) for a in alone.alarms]
    mine = [(a.example, a.method, a.site, a.position) for a in guard.alarms]
    assert sorted(mine) == sorted(alarms)


@pytest.mark.slow
@pytest.mark.truth("each prompt in a batch of its own")
@pytest.mark.parametrize("pad", [PAD, END, None], ids=str)
def test_a_batch_scores_each_sequence_as_it_does_alone(model, probe, pad):
    model.module.generation_config.pad_token_id = pad
    guard, alone = Guard(model, probe, alpha=0.1), Guard(model, probe, alpha=0.1)
    out = generated(model, PROMPTS, LENGTHS, guard)
    assert out.shape[1] == max(map(len, PROMPTS)) + NEW  # one went on to the end
    assert_as_alone(model, guard, alone)
    generated(model, PROMPTS, LENGTHS, guard)
    assert_as_alone(model, guard, alone)


@pytest.mark.slow
@pytest.mark.truth("each prompt in a batch of its own")
def test_a_cache_of_fixed_size_changes_nothing(model, probe):
    guard, alone = Guard(model, probe, alpha=None), Guard(model, probe, alpha=None)
    fixed = {"cache_implementation": "static", "disable_compile": True}
    generated(model, PROMPTS, LENGTHS, guard, **fixed)
    assert_as_alone(model, guard, alone)


@pytest.mark.slow
@pytest.mark.truth("each prompt in a batch of its own")
def test_ends_that_only_the_call_names_are_said_to_the_guard(model, probe):
    own = {"eos_token_id": [60, 61], "pad_token_id": 5}
    config = GenerationConfig(**own)
    guard, alone = (Guard(model, probe, generation_config=config) for _ in range(2))
    generated(model, PROMPTS, LENGTHS, guard, end=61, **own)
    assert_as_alone(model, guard, alone, end=61, **own)


def test_an_end_token_that_ends_nothing_costs_its_own_row_alone(model, probe):
    with Guard(model, probe, methods=["mahalanobis"]) as guard, torch.no_grad():
        cache = cache_of(model.module(input_ids=torch.tensor([ITEMS[0][:4], ITEMS[1][:4]])))
        for fed in ([7, 9], [END, 9], [8, 9], [PAD, 9], [END, END], [[END, 5], [PAD, 6]]):
            step = torch.tensor(fed).reshape(2, -1)
            cache = cache_of(model.module(input_ids=step, **{CACHE: cache}))
    for (_, site), example in guard.example.items():
        position = guard.position["mahalanobis", site]
        missing = set(position[example == 1].tolist()) - set(position[example == 0].tolist())
        assert missing == {5}


@pytest.mark.slow
def test_a_sequence_alone_keeps_its_end_tokens(model, probe):
    with Guard(model, probe, methods=["mahalanobis"]) as guard, torch.no_grad():
        cache = cache_of(model.module(input_ids=torch.tensor([[5, END]])))
        for fed in (END, END, 7):
            step = torch.tensor([[fed]])
            cache = cache_of(model.module(input_ids=step, **{CACHE: cache}))
    assert guard.n_forwards == 4
    assert all(int(at[-1]) == 4 for at in guard.position.values())


@pytest.mark.slow
def test_beams_lose_no_row(model, probe):
    ids, mask = padded(PROMPTS[:2], "left")
    call = {"input_ids": ids, "attention_mask": mask.long(), "max_new_tokens": NEW, "num_beams": 3}
    with Guard(model, probe, methods=["mahalanobis"]) as guard, torch.no_grad():
        model.module.generate(**call, eos_token_id=None)
    model.module.generation_config.eos_token_id = END
    with Guard(model, probe, methods=["mahalanobis"]) as other, torch.no_grad():
        model.module.generate(**call)
    for name, found in guard.scores.items():
        assert len(found) == len(other.scores[name])


@pytest.mark.slow
def test_a_guard_or_tap_inside_itself_is_refused(model, probe):
    guard, tap = Guard(model, probe), Tap(model, "blocks")
    for one, name in ((guard, "Guard"), (tap, "Tap")):
        refused = pytest.raises(InputError, match=f"^{name}: expected one with block at a time")
        with one, refused, one:
            pass
        with one, torch.no_grad():
            model.module(input_ids=torch.tensor([ITEMS[0]]))
    assert guard.n_forwards == 1
