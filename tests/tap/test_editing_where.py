"""Which tokens an edit acts on, in every way of calling a model; gates; states of other runs."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cache_name import CACHE
from models import bert, gpt2, llama, mamba, mixtral, mlp, t5
from sonde.core.edit import Add, Edit, EditContext, Project, Replace, Scale
from sonde.core.errors import InputError, SiteError
from sonde.tap import Gate, Tap, TokenIds, cache_of, editing
from tap_inputs import padded

IDS, MASK = padded([[1, 5, 6, 7, 9], [1, 7, 8]], "left")
DIRECTION = 3 * torch.randn(32, generator=torch.Generator().manual_seed(0))
ADD = Add(DIRECTION)
SITE = "h.1"


@dataclass(frozen=True)
class Spy(Edit):
    """Notes what it is told."""

    seen: list[EditContext] = field(default_factory=list)

    def apply(self, x: Tensor, site: Any, context: EditContext) -> Tensor:
        self.seen.append(context)
        return x


def meant(where: Any, ids: Tensor, mask: Tensor, prompt_length: int) -> Tensor:
    """Return the tokens that ``where`` names, written out one by one."""
    found = torch.zeros_like(mask)
    for row, (tokens, real) in enumerate(zip(ids.tolist(), mask.tolist(), strict=True)):
        columns = [c for c, r in enumerate(real) if r]
        prompt = [c for c in columns if c < prompt_length]
        for position, column in enumerate(columns):
            found[row, column] = {
                "all": True,
                "prompt": column in prompt,
                "generated": column not in prompt,
                "last": column == prompt[-1],
                "positions": position in (0, 2, 6),
                "ids": tokens[column] in (7, 8),
                "both": column not in prompt or column == prompt[-1],
            }[where]
    return found


def by_hand(net: Any, where: Any, ids: Tensor, mask: Tensor, prompt_length: int) -> Tensor:
    """Return the logits of one whole forward with the direction added by a hook."""
    chosen = meant(where, ids, mask, prompt_length).unsqueeze(-1)
    module = net.transformer.h[1]
    handle = module.register_forward_hook(lambda m, a, out: out + chosen * DIRECTION)
    position = (mask.long().cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = net(ids, attention_mask=mask.long(), position_ids=position).logits
    handle.remove()
    return logits


WHERE = {
    "all": "all",
    "prompt": "prompt",
    "generated": "generated",
    "last": "last",
    "positions": [0, 2, 6],
    "ids": TokenIds((7, 8)),
    "both": ["last", "generated"],
}


@pytest.mark.truth("greedy by whole forwards, the direction added by a hook at tokens written out")
@pytest.mark.parametrize("where", WHERE)
def test_generation_with_a_cache_edits_the_very_tokens(where):
    net, ids, mask = gpt2(), IDS, MASK
    for _ in range(4):
        logits = by_hand(net, where, ids, mask, IDS.shape[1])
        ids = torch.cat((ids, logits[:, -1:].argmax(-1)), 1)
        mask = torch.cat((mask, torch.ones(2, 1).bool()), 1)
    for use_cache in (True, False):
        with editing(net, ADD, SITE, WHERE[where]):
            found = net.generate(
                IDS,
                attention_mask=MASK.long(),
                max_new_tokens=4,
                do_sample=False,
                use_cache=use_cache,
                eos_token_id=None,
            )
        assert torch.equal(found, ids), use_cache


MODES = {
    "sampled": {"do_sample": True},
    "beams": {"num_beams": 3, "do_sample": False},
    "sampled beams": {"num_beams": 2, "do_sample": True},
    "several": {"num_beams": 1, "do_sample": True, "num_return_sequences": 2},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("where", ["generated", "last", "positions"])
def test_a_cache_changes_nothing_in_any_mode(mode, where):
    net, found = gpt2(), []
    for use_cache in (True, False):
        torch.manual_seed(5)
        with editing(net, ADD, SITE, WHERE[where]):
            options = MODES[mode] | {"max_new_tokens": 4, "use_cache": use_cache}
            found.append(
                net.generate(IDS, attention_mask=MASK.long(), eos_token_id=None, **options)
            )
    assert torch.equal(*found)


@pytest.mark.parametrize("use_cache", [True, False])
def test_rows_follow_beams_and_steps_are_counted(use_cache):
    net, spy = gpt2(), Spy()
    options = {"num_beams": 3, "max_new_tokens": 3, "do_sample": False, "use_cache": use_cache}
    with editing(net, spy, SITE):
        for _ in range(2):
            net.generate(IDS, attention_mask=MASK.long(), eos_token_id=None, **options)
    assert [c.step for c in spy.seen] == [0, 1, 2] * 2
    assert [c.call for c in spy.seen] == list(range(6))
    for context in spy.seen:
        assert context.row is not None
        assert context.of_examples(torch.tensor([5, 7])).tolist() == [5, 5, 5, 7, 7, 7]
    last = spy.seen[2]
    assert last.generated is not None
    assert last.position is not None
    assert last.tokens is not None
    assert int(last.generated.sum()) == 6 * (1 if use_cache else 2)
    assert last.position[:, -1].tolist() == [6, 6, 6, 4, 4, 4]
    assert last.tokens.shape == last.position.shape


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_and_other_rows_keep_their_bits(side, dtype):
    net = bert().to(dtype)
    ids, mask = padded([[1, 5, 6, 7], [1, 7]], side)
    given = {"input_ids": ids, "attention_mask": mask.long()}
    with Tap(net, "encoder.layer.1") as plain, torch.no_grad():
        net(**given)
    with editing(net, ADD, "encoder.layer.1"), Tap(net, "encoder.layer.1") as tap:
        net(**given)
    before, after = (t.rows["encoder.layer.1:out"] for t in (plain, tap))
    assert torch.equal((before != after).any(-1), mask)
    assert torch.equal(after[mask], (before[mask].float() + DIRECTION).to(dtype))


@pytest.mark.truth("eager generation with a cache that grows")
@pytest.mark.parametrize("window", [None, 4])
def test_static_caches_and_their_wide_masks_leave_padding_alone(window):
    import transformers

    net: Any = llama()
    if window:
        config = transformers.MistralConfig(**net.config.to_dict() | {"sliding_window": window})
        torch.manual_seed(0)
        net = transformers.MistralForCausalLM(config).eval()
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    spy, found = Spy(), []
    for more in ({}, {"cache_implementation": "static", "disable_compile": True}):
        for edit in (spy, ADD):
            with editing(net, edit, "layers.1"):
                out = net.generate(IDS, attention_mask=MASK.long(), **options, **more)
        found.append(out)
    assert torch.equal(*found)
    for grown, fixed in zip(spy.seen[:4], spy.seen[4:], strict=True):
        assert grown.mask is not None
        assert fixed.mask is not None
        assert torch.equal(grown.mask, fixed.mask)
        assert torch.equal(grown.mask, MASK if grown.step == 0 else torch.ones(2, 1).bool())
        for name in ("position", "tokens", "generated"):
            assert torch.equal(getattr(grown, name)[grown.mask], getattr(fixed, name)[grown.mask])


@pytest.mark.truth("the same steps in float32, rounded by hand")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_rounded_once(dtype):
    net = nn.Sequential(nn.Identity(), nn.Identity())
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    direction = DIRECTION / DIRECTION.norm()
    with editing(net, Project(DIRECTION), "0"), torch.autocast("cpu", torch.bfloat16):
        found = net(x)
    wide = x.float()
    expected = (wide - (wide * direction).sum(-1, keepdim=True) * direction).to(dtype)
    assert found.dtype == dtype
    gap = (found.float() - expected.float()).abs().max()
    assert gap <= 1e-6, gap
    twice = (x - ((x * direction.to(dtype)).sum(-1, keepdim=True) * direction.to(dtype))).float()
    assert (twice - expected.float()).abs().max() > 1e-4


class First:
    """Scores a row by its first entry."""

    def __init__(self) -> None:
        self.n = 0

    def score(self, x: Tensor) -> Tensor:
        self.n += 1
        return x[:, 0]


def test_a_gate_decides_once_for_each_prompt():
    net = gpt2()
    prompts = [[1, 5, 6, 7, 9], [1, 7, 8], [4, 4], [1, 30]]
    ids, mask = padded(prompts, "left")
    with Tap(net, "h.0") as tap:
        net(ids, attention_mask=mask.long(), position_ids=(mask.long().cumsum(1) - 1).clamp(min=0))
    states = tap.rows["transformer.h.0:out"]
    scores = torch.stack([x[real].mean(0)[0] for x, real in zip(states, mask, strict=True)])
    threshold = float(scores.sort().values[1:3].mean())
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    plain = net.generate(ids, attention_mask=mask.long(), **options)
    with editing(net, ADD, SITE):
        whole = net.generate(ids, attention_mask=mask.long(), **options)
    assert (plain != whole).any(1).all()
    scorer = First()
    for more in ({}, {"use_cache": False}, {"num_beams": 2}):
        expected = [
            net.generate(ids, attention_mask=mask.long(), **options | more),
        ]
        with editing(net, ADD, SITE):
            expected.append(net.generate(ids, attention_mask=mask.long(), **options | more))
        scorer.n = 0
        with editing(net, ADD, SITE, gate=Gate(scorer, threshold, "h.0")):
            gated = net.generate(ids, attention_mask=mask.long(), **options | more)
        opens = (scores > threshold)[:, None]
        assert torch.equal(gated, torch.where(opens, expected[1], expected[0])), more
        assert scorer.n == 1


def test_a_gate_leaves_closed_rows_bit_for_bit_and_asks_before_the_edit():
    net, x = mlp(), torch.randn(6, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        plain, first = net(x), net[0](x)
        with editing(net, Scale(3.0), "0"):
            edited = net(x)
        with editing(net, Scale(3.0), "0", gate=Gate(First(), 0.0)):
            gated = net(x)
    opens = first[:, :1] > 0
    assert opens.any()
    assert not opens.all()
    assert torch.equal(gated, torch.where(opens, edited, plain))
    late = Gate(First(), 0.0, "2")
    with (
        pytest.raises(SiteError, match="ran before the site of the gate"),
        editing(net, Scale(3.0), "0", gate=late),
    ):
        net(x)


class Difference:
    """Scores the first entry of the first site less the last entry of the second."""

    def score(self, x: Tensor) -> Tensor:
        return x[:, 0] - x[:, -1]


def test_a_gate_reads_several_sites_in_the_order_in_which_they_are_named():
    net, x = mlp(), torch.randn(20, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        plain, first, second = net(x), net[0](x), net[:2](x)
        with editing(net, Scale(3.0), "2"):
            edited = net(x)
        with editing(net, Scale(3.0), "2", gate=Gate(Difference(), 0.0, ["1", "0"])):
            gated = net(x)
    opens = (second[:, :1] - first[:, -1:]) > 0
    assert opens.any()
    assert not opens.all()
    assert torch.equal(gated, torch.where(opens, edited, plain))
    several = Gate(Difference(), 0.0, "0", reducer="tokens")
    with (
        pytest.raises(InputError, match="reduces the tokens of an example to one row"),
        editing(net, Scale(3.0), "2", gate=several),
    ):
        net(torch.randn(2, 5, 8))


@dataclass(frozen=True)
class FromClean(Edit):
    """Puts the states of the run ``clean`` in place."""

    def apply(self, x: Tensor, site: Any, context: EditContext) -> Tensor:
        return context.others["clean"]


def test_states_of_another_run_come_aligned_by_row():
    net = gpt2()
    clean = torch.where(MASK, (IDS + 20) % 61, IDS)
    mask = {"attention_mask": MASK.long()}
    options = mask | {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    with Tap(net, SITE) as tap:
        net(clean, **mask)
    given = {"clean": {name: x for name, x in tap.rows.items()}}
    with torch.no_grad(), editing(net, FromClean(), SITE, others=given):
        found = net(IDS, **mask).logits
    with torch.no_grad(), editing(net, Replace(given["clean"][f"{tap.sites[0]}"]), SITE):
        assert torch.equal(net(IDS, **mask).logits, found)
    with editing(net, FromClean(), SITE, "prompt", others=given):
        beams = net.generate(IDS, **options, num_beams=3)
        greedy = net.generate(IDS, **options)
    assert beams.shape == greedy.shape
    with torch.no_grad(), editing(net, FromClean(), SITE, "prompt", others=given):
        repeated = net(IDS.repeat_interleave(3, 0), attention_mask=MASK.repeat_interleave(3, 0))
    assert torch.allclose(repeated.logits[::3], found, atol=1e-5)
    short = {"clean": {name: x[:, :2] for name, x in given["clean"].items()}}
    with (
        pytest.raises(InputError, match=r"others\['clean'\] to hold a state for each of \(2, 5"),
        editing(net, FromClean(), SITE, others=short),
    ):
        net(IDS, **mask)
    with (
        pytest.raises(InputError, match=r"to have the edited site transformer\.h\.1:out, got none"),
        editing(net, FromClean(), SITE, others={"clean": {}}),
    ):
        net(IDS, **mask)


def test_an_encoder_that_generate_runs_alone_is_edited_but_for_its_padding():
    net = t5()
    ids, mask = padded([[5, 6, 7], [8, 2]])
    spy = Spy()
    sites = ["encoder.block.1", "decoder.block.1"]
    with editing(net, spy, sites):
        net.generate(ids, attention_mask=mask.long(), max_new_tokens=3, num_beams=2)
    encoder, first, second = spy.seen[0], spy.seen[1], spy.seen[2]
    assert encoder.mask is not None
    assert torch.equal(encoder.mask, mask)
    assert (first.step, second.step) == (0, 1)
    assert first.row is not None
    assert first.row.tolist() == [0, 1, 2, 3]
    with pytest.raises(InputError, match=r"each of the 4 examples .* got 3"):
        first.of_examples(torch.zeros(3))
    assert first.tokens is not None
    assert first.tokens.tolist() == [[0]] * 4


@pytest.mark.filterwarnings("ignore:.*nested:UserWarning")  # torch warns once in a process
def test_a_padded_encoder_of_torch_hands_out_nested_states():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(2, 5, 8)
    pad = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 1, 1]]).bool()
    with torch.no_grad(), Tap(net, "layers.0") as tap:
        net(x, src_key_padding_mask=pad)
    states = tap.rows["layers.0:out"]
    assert states.shape == (2, 5, 8)
    with torch.no_grad(), editing(net, Scale(2.0), "layers.0"):
        found = net(x, src_key_padding_mask=pad)
        alone = net(x[1:, :3])
    assert torch.allclose(found[1, :3], alone[0], atol=1e-6)
    with torch.no_grad(), editing(net, Scale(2.0), "layers.0", where=[1]):
        net(x, src_key_padding_mask=pad)
        with Tap(net, "layers.1:in") as tap:
            net(x, src_key_padding_mask=pad)
    changed = (tap.rows["layers.1:in"] != states).any(-1)
    assert changed.tolist() == [[False, True, False, False, False]] * 2


def test_a_cache_filled_inside_goes_on_and_a_warm_one_is_kept_on_purpose():
    net, spy = llama(), Spy()
    ids = torch.tensor([[1, 5, 6, 7]])
    with torch.no_grad():
        with editing(net, ADD, "layers.1"):
            whole = net(ids).logits
            cache = cache_of(net(ids[:, :2], use_cache=True))
            parts = net(ids[:, 2:], **{CACHE: cache}).logits
        assert torch.allclose(whole[:, 2:], parts, atol=1e-5)
        with editing(net, spy, "layers.1", cache="keep"):
            net(ids[:, :1], **{CACHE: cache})
            net(ids[:, :1], **{CACHE: cache})
    assert [(c.step, int(c.generated.sum())) for c in spy.seen] == [(0, 0), (1, 1)]  # type: ignore
    assert [c.position.tolist() for c in spy.seen] == [[[4]], [[5]]]  # type: ignore


def test_a_model_whose_cache_is_a_state_counts_its_steps():
    net, spy = mamba(), Spy()
    with editing(net, spy, "layers.1"):
        net.generate(IDS[:1], max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert [c.step for c in spy.seen] == [0, 1, 2]
    assert [c.position[0, -1].item() for c in spy.seen] == [4, 5, 6]  # type: ignore


def test_what_selects_nothing_is_said():
    net = gpt2()
    for where in ("generated", [9], TokenIds((60,))):
        with (
            pytest.raises(SiteError, match=r"where=.* selected no token at transformer\.h\.1:out"),
            editing(net, ADD, SITE, where),
        ):
            net(IDS, attention_mask=MASK.long())
    for where in ("first", [-1], []):
        with (
            pytest.raises(InputError, match="expected where to be one of all, prompt"),
            editing(net, ADD, SITE, where),
        ):
            pass
    net = mlp()
    with (
        pytest.raises(SiteError, match=r"where=last needs states of tokens, got shape \(4, 16\)"),
        editing(net, Scale(2.0), "0", "last"),
    ):
        net(torch.ones(4, 8))
    net = gpt2()
    with (
        pytest.raises(SiteError, match="outside a call of GPT2LMHeadModel"),
        editing(net, ADD, SITE),
    ):
        net.transformer(IDS)
    with (
        pytest.raises(SiteError, match="needs the ids of the tokens"),
        editing(net, ADD, SITE, TokenIds((5,))),
    ):
        net(inputs_embeds=torch.zeros(1, 3, 32))


@pytest.mark.truth("the experts' outputs changed by a hook of one's own, padding left alone")
def test_experts_that_read_all_tokens_in_a_row_are_edited_without_padding():
    net, site = mixtral().eval(), "model.layers.1.mlp.experts"
    wide = Add(torch.randn(net.config.hidden_size))

    def by_hand(module, args, out):
        return out + MASK.reshape(-1, 1) * wide.direction

    inputs = {"input_ids": IDS, "attention_mask": MASK.long()}
    with torch.no_grad():
        with editing(net, wide, site):
            edited = net(**inputs).logits
        handle = net.get_submodule(site).register_forward_hook(by_hand)
        expected = net(**inputs).logits
        handle.remove()
    torch.testing.assert_close(edited, expected)


class Gathers(nn.Module):
    """Sends some tokens of all examples to an expert."""

    def __init__(self):
        super().__init__()
        self.embed, self.expert = nn.Embedding(12, 4), nn.Linear(4, 4)

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        chosen = input_ids > 6
        return x.masked_scatter(chosen[..., None], self.expert(x[chosen]))


def test_an_expert_that_reads_some_tokens_is_refused_with_padding():
    net = Gathers()
    with torch.no_grad(), editing(net, Scale(2.0), "expert"):
        with pytest.raises(
            SiteError,
            match=r"reads 4 rows, which are neither one for each example nor one for each token",
        ):
            net(input_ids=IDS, attention_mask=MASK.long())
        net(input_ids=IDS)
