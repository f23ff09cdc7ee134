"""The laws of decoding rules: functions that raise AssertionError if a rule breaks them."""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from sonde.core.inputs import Model
from sonde.tap import Decode, DecodeContext, OtherLogits, OtherState, Tap
from sonde.tap.decoding.bound import end_tokens
from sonde.tap.decoding.layers import ModelBlocks

TOKENS, LONGEST, NEW = 32, 6, 7
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"num_beams": 3},
    {"do_sample": True},
    {"do_sample": True, "num_beams": 2, "num_return_sequences": 2},
)


def causal_model(seed: int = 0, width: int = 16) -> Any:
    """Return a language model with random weights and a vocabulary of 32, to test rules.

    Parameters
    ----------
    seed : int, default=0
        Seed of the random weights.
    width : int, default=16
        Number of features of the states.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=TOKENS,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def prompts() -> tuple[Tensor, Tensor]:
    """Return token ids (3, 6) and mask (True = real token) of three left-padded prompts."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, TOKENS, (3, LONGEST), generator=generator)
    mask = torch.arange(LONGEST) >= torch.tensor([[2], [0], [3]])
    return ids * mask, mask


def generate(model: Any, processors: list[Any], how: Mapping[str, Any]) -> Tensor:
    """Return the token ids of the prompts and of seven generated tokens, seeded.

    ``processors`` are logits processors, ``how`` further arguments of ``model.generate``.
    """
    ids, mask = prompts()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return model.generate(
            ids,
            attention_mask=mask.long(),
            max_new_tokens=NEW,
            logits_processor=processors,
            **how,
        )


@final
@dataclass(frozen=True, eq=False)
class _Recorded(Decode):
    """Reads the inputs of another rule, records the arguments of ``step``, and changes nothing."""

    rule: Decode
    seen: list[tuple[Tensor, DecodeContext]]

    def reads(self) -> Mapping[str, OtherLogits | OtherState]:
        return self.rule.reads()

    def step(self, logits: Tensor, context: DecodeContext) -> Tensor:
        self.seen.append((logits.clone(), context))
        return logits


def questions(rule: Decode) -> list[tuple[Tensor, DecodeContext]]:
    """Return the arguments of each ``step`` during greedy generation by ``causal_model()``.

    Logits and context have one row for each prompt.
    """
    seen: list[tuple[Tensor, DecodeContext]] = []
    model = causal_model()
    generate(model, [_Recorded(rule, seen).bind(model)], {})
    return seen


def law_strength(rule: Decode) -> None:
    """Strength 0 returns its logits, the same tensor object, and generates the plain tokens."""
    plain = replace(cast(Any, rule), strength=0.0)
    for logits, context in questions(plain)[:2]:
        assert plain.step(logits, context) is logits, "strength 0 gives other logits"
    model = causal_model()
    for how in WAYS:
        same = torch.equal(generate(model, [], how), generate(model, [plain.bind(model)], how))
        assert same, f"strength 0 gives other tokens with {how or 'greedy search'}"


def law_kept(rule: Decode) -> None:
    """Logits keep shape and dtype; each row has a finite entry, no NaN; inputs are unchanged."""
    for logits, context in questions(rule)[:3]:
        for dtype in (torch.float32, torch.float64):
            x = logits.to(dtype)
            others = {name: y.to(dtype) for name, y in context.others.items()}
            before = {name: y.clone() for name, y in others.items()} | {"logits": x.clone()}
            stepped = rule.step(x, replace(context, others=others))
            assert stepped.shape == x.shape, f"shape {tuple(stepped.shape)} of {tuple(x.shape)}"
            assert stepped.dtype == dtype, f"{stepped.dtype} of {dtype}"
            assert not bool(stepped.isnan().any()), "some logits are NaN"
            assert bool(stepped.isfinite().any(1).all()), "a row has no token left"
            for name, y in (others | {"logits": x}).items():
                assert torch.equal(y, before[name]), f"{name} was changed in place"


def law_constant(rule: Decode) -> None:
    """Adding a constant to all logits of the model, or of the rule, leaves probabilities equal."""
    reads = rule.reads()
    for logits, context in questions(rule)[:3]:
        x = logits.double()
        others = {name: y.double() for name, y in context.others.items()}
        more = {n: y + 3.0 * isinstance(reads[n], OtherLogits) for n, y in others.items()}
        first = rule.step(x, replace(context, others=others))
        moved = rule.step(x - 2.0, replace(context, others=more))
        _close(first, moved, "constants")


def law_rows(rule: Decode) -> None:
    """The probabilities for a text do not depend on the other texts of its batch."""
    for logits, context in questions(rule)[:3]:
        whole = rule.step(logits, context)
        for i in range(len(logits)):
            alone = rule.step(logits[i : i + 1].clone(), _row(context, i))
            _close(whole[i : i + 1], alone, "other texts")


def law_recomputed(rule: Decode) -> None:
    """With padding, beams or sampling, tokens equal those of single texts without a cache."""
    model = causal_model()
    for how in WAYS:
        tokens = generate(model, [rule.bind(model)], how)
        expected = generate(model, [_from_scratch(rule, model)], how)
        same = tokens.shape == expected.shape and torch.equal(tokens, expected)
        assert same, f"other tokens than without cache, with {how or 'greedy search'}"


def law_untouched(rule: Decode) -> None:
    """Weights, modes, hooks and random state are restored, also after an exception."""
    model = causal_model()
    others = [r.model for r in rule.reads().values() if r.model is not None]
    modules = [model, *(m.module if isinstance(m, Model) else m for m in others)]
    before = [_fingerprint(m) for m in modules]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    logits, context = questions(rule)[0]
    rule.step(logits, context)
    generate(model, [rule.bind(model)], {})
    assert torch.equal(torch.get_rng_state(), state), "the random state was changed"
    assert [_fingerprint(m) for m in modules] == before, "a model was changed"
    with rule.bind(model) as processor, suppress(_PlannedError):
        generate(model, [processor, _fails], {})
    assert [_fingerprint(m) for m in modules] == before, "a model was changed by an exception"


class _PlannedError(Exception):
    pass


def _fails(ids: Tensor, scores: Tensor) -> Tensor:
    raise _PlannedError


def _close(a: Tensor, b: Tensor, what: str) -> None:
    a, b = a.log_softmax(1), b.log_softmax(1)
    assert torch.equal(a.isfinite(), b.isfinite()), f"possible tokens changed by {what}"
    gap = float((a - b).nan_to_num(0.0).abs().max())
    assert gap < 1e-5, f"probabilities moved by {what}: log gap {gap:.3g}"


def _row(context: DecodeContext, i: int) -> DecodeContext:
    cut = slice(i, i + 1)
    return replace(
        context,
        others={name: x[cut] for name, x in context.others.items()},
        tokens=None if context.tokens is None else context.tokens[cut],
        mask=None if context.mask is None else context.mask[cut],
    )


def _fingerprint(module: nn.Module) -> tuple[str, list[bool], int]:
    digest = hashlib.sha256()
    for x in module.state_dict().values():
        digest.update(x.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())
    return digest.hexdigest(), [m.training for m in module.modules()], hooks


def _from_scratch(rule: Decode, model: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a logits processor that recomputes each text without a cache, at each token."""
    ids, real = prompts()
    layers = cache(ModelBlocks)

    def process(texts: Tensor, scores: Tensor) -> Tensor:
        times = len(texts) // len(ids)
        rows: list[Tensor] = []
        for i, text in enumerate(texts):
            prompt, new = ids[i // times][real[i // times]], text[LONGEST:]
            others = {n: _read(r, model, layers, prompt, new) for n, r in rule.reads().items()}
            whole = torch.cat((prompt, new))[None]
            step = texts.shape[1] - LONGEST
            context = DecodeContext(
                others, whole, torch.ones_like(whole).bool(), step, end_tokens(model)
            )
            rows.append(rule.step(scores[i : i + 1].clone(), context).log_softmax(1))
        return torch.cat(rows)

    return process


def _read(
    read: OtherLogits | OtherState,
    own: Any,
    layers: Callable[[nn.Module], ModelBlocks],
    prompt: Tensor,
    new: Tensor,
) -> Tensor:
    """Return the logits or the state (1, ...) that a rule reads after one text, without a cache."""
    model = own if read.model is None else read.model
    module: Any = model.module if isinstance(model, Model) else model
    ids = prompt[None]

    def logits(texts: Tensor, mask: Tensor) -> Tensor:
        pairs = zip(texts, mask, strict=True)
        rows = [module(text[keep][None], use_cache=False) for text, keep in pairs]
        return torch.cat([row.logits[:, -1] for row in rows])

    if read.prompt is not None:
        ids, mask = read.prompt(ids, torch.ones_like(ids).bool(), logits)
        ids = ids[:, mask[0]]
    ids = torch.cat((ids, new[None]), dim=1)
    site = read.site if isinstance(read, OtherState) else None
    if isinstance(read, OtherLogits) and read.layer is not None:
        site = str(layers(module).site(read.layer))
    if site is None:
        return module(ids, use_cache=False).logits[:, -1]
    with Tap(module, site) as tap, torch.no_grad():
        module(ids, use_cache=False)
        (state,) = tap.rows.values()
    return state[:, -1] if isinstance(read, OtherState) else layers(module).logits(state[:, -1])
