"""The laws of edits: functions that raise AssertionError if an edit breaks them."""

from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from sonde.core.edit import Edit, EditContext
from sonde.core.site import Site
from sonde.tap import Gate, Tap, editing

WIDTH = 4
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SITE = Site("layers.0")


def activations(dtype: torch.dtype = torch.float64) -> Tensor:
    """Return random activations (example, pos, dim) of shape (3, 5, 4)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 5, WIDTH, generator=generator, dtype=torch.float64).to(dtype)


def apply(edit: Edit, x: Tensor) -> Tensor:
    """Return the edited activations of texts without padding."""
    position = torch.arange(x.shape[1]).expand(x.shape[:2])
    return edit.apply(x, SITE, EditContext(torch.ones(x.shape[:2]).bool(), position))


def has_strength(method: object) -> bool:
    """Return whether an edit or a decoding rule has a parameter named ``strength``."""
    return is_dataclass(method) and "strength" in {f.name for f in fields(method)}


def law_strength(edit: Edit) -> None:
    """Strength 0 returns its input, the same tensor object."""
    x = activations()
    assert apply(replace(cast(Any, edit), strength=0.0), x) is x, "strength 0 gives another tensor"


def law_kept(edit: Edit) -> None:
    """The output has the input's shape and float dtype; the input is not changed in place."""
    for dtype in FLOATS:
        x = activations(dtype)
        before = x.clone()
        edited = apply(edit, x)
        assert edited.shape == x.shape, f"shape {tuple(edited.shape)} of {tuple(x.shape)}"
        assert edited.dtype == dtype, f"{edited.dtype} of {dtype}"
        assert torch.equal(x, before), f"the activation was changed in place, in {dtype}"


def law_rows(edit: Edit) -> None:
    """The edit of an example does not depend on the other examples of its batch."""
    x = activations()
    other = x.clone()
    other[0] = -3 * other[0] + 1
    kept, beside = apply(edit, x)[1:], apply(edit, other)[1:]
    gap = float((kept - beside).abs().max())
    assert gap < 1e-12, f"other examples moved by {gap:.3g}"


def law_again(edit: Edit) -> None:
    """The output does not depend on the global random state."""
    torch.manual_seed(1)
    first = apply(edit, activations())
    torch.manual_seed(2)
    assert torch.equal(first, apply(edit, activations())), "two runs differ"


def law_padding(edit: Edit) -> None:
    """The activations at padding do not influence the activations at real tokens."""
    x = activations()
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    mask[1, :2] = False
    position = (mask.long().cumsum(1) - 1).clamp(min=0)
    context = EditContext(mask, position)
    other = torch.where(mask.unsqueeze(-1), x, 7 - 5 * x)
    gap = edit.apply(x, SITE, context)[mask] - edit.apply(other, SITE, context)[mask]
    assert float(gap.abs().max()) < 1e-12, f"real tokens moved by {float(gap.abs().max()):.3g}"


def law_rounding(edit: Edit) -> None:
    """Float32 activations give the same output as float64, up to rounding."""
    x = activations()
    exact, rounded = apply(edit, x), apply(edit, x.float()).double()
    gap = float((exact - rounded).abs().max()) / max(1.0, float(exact.abs().max()))
    assert gap < 1e-5, f"float32 is off by {gap:.3g} of the largest entry"


def law_untouched(edit: Edit) -> None:
    """In a model, padding, earlier sites, and rows with a closed gate stay equal bit by bit."""
    net, (ids, mask) = language_model(), prompts()
    sites, given = ["h.0:in", "h.0", "h.1"], {"attention_mask": mask.long()}
    with Tap(net, sites) as tap:
        net(ids, **given)
        plain = tap.rows
    with editing(net, edit, "h.0"), Tap(net, sites) as tap:
        net(ids, **given)
        whole = tap.rows
    with editing(net, edit, "h.0", gate=Gate(_Zero(), 0.0, "h.0:in")), Tap(net, sites) as tap:
        net(ids, **given)
        gated = tap.rows
    before, at, behind = plain
    assert torch.equal(whole[before], plain[before]), "a site before the edited one changed"
    assert torch.equal(whole[at][~mask], plain[at][~mask]), "padding changed"
    assert torch.equal(gated[behind], plain[behind]), "rows behind a closed gate changed"


def law_restored(edit: Edit) -> None:
    """Weights, modes, hooks and random state are restored, also after an exception."""
    net, (ids, mask) = language_model(), prompts()
    net.transformer.h[1].train()  # dropout would draw: it is 0
    try:
        before = _found(net)
        with editing(net, edit, ["h.0", "h.1:in"]):
            net(ids, attention_mask=mask.long())
        _same(before, _found(net))
        try:
            with editing(net, edit, ["h.0", "h.1:in"]):
                net(ids + 1000)
        except IndexError:
            pass
        _same(before, _found(net))
    finally:
        net.eval()


def law_generates(edit: Edit) -> None:
    """``generate`` gives equal logits with and without a cache: greedy, sampled, and with beams."""
    net, (ids, mask) = language_model(), prompts()
    settings = {
        "attention_mask": mask.long(),
        "max_new_tokens": 3,
        "eos_token_id": None,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    for way in ({"do_sample": False}, {"do_sample": True}, {"num_beams": 2, "do_sample": False}):
        logits: list[Tensor] = []
        for use_cache in (True, False):
            with torch.random.fork_rng(), torch.no_grad(), editing(net, edit, "h.0"):
                torch.manual_seed(3)
                out = net.generate(ids, use_cache=use_cache, **settings, **way)
            logits.append(torch.stack(out.logits))
        gap = float((logits[0] - logits[1]).abs().max())
        assert gap < 1e-9, f"logits with a cache are off by {gap:.3g}, {way}"


class _Zero:
    """Scores every row as 0."""

    def score(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x))


@cache
def language_model() -> Any:
    """Return a float64 language model of two blocks whose hidden states have width 4."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=16,
        n_embd=WIDTH,
        n_head=1,
        n_layer=2,
        n_positions=16,
        bos_token_id=1,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.GPT2LMHeadModel(config).double().eval()


def prompts() -> tuple[Tensor, Tensor]:
    """Return token ids (3, 4) and mask (True = real token) of three left-padded prompts."""
    ids = torch.tensor([[3, 5, 7, 9], [0, 4, 6, 8], [0, 0, 11, 2]])
    return ids, ids > 0


def _found(net: nn.Module) -> dict[str, list[Any]]:
    """Return copies of all objects that an edit must leave unchanged, by name."""
    return {
        "weights": [x.clone() for x in net.state_dict().values()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()],
        "mode": [m.training for m in net.modules()],
        "random state": [torch.get_rng_state()],
    }


def _same(before: dict[str, list[Any]], after: dict[str, list[Any]]) -> None:
    for what, values in before.items():
        for old, new in zip(values, after[what], strict=True):
            is_same = torch.equal(old, new) if isinstance(old, Tensor) else old == new
            assert is_same, f"another {what} than before"
