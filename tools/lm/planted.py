"""Faults that people plant into language models and their texts by mistake.

Each fault lists the codes that describe it and, if there is one, the damaged module. Both were
written before any scan of the fault.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SEED = 0
Texts = list[str]


@dataclass(frozen=True)
class Fault:
    """A fault, how it is planted, and what names it.

    Parameters
    ----------
    name : str
    codes : frozenset of str
        Findings that describe the fault.
    plant : callable
        ``plant(module, texts) -> texts``: changes the copy of the model, or returns other texts.
    place : str
        Path of the damaged module; empty if the fault is not in one.
    of_chats : bool
        Whether it is planted into chats instead of documents.
    """

    name: str
    codes: frozenset[str]
    plant: Callable[[Any, Texts], Texts]
    place: str = ""
    of_chats: bool = False


def fault(
    name: str,
    codes: str,
    plant: Callable[[Any, Texts], Any],
    place: str = "",
    of_chats: bool = False,
) -> Fault:
    """Return a fault; ``codes`` are numbers, and ``plant`` may return None for the same texts."""

    def planted(module: Any, texts: Texts) -> Texts:
        changed = plant(module, texts)
        return changed if isinstance(changed, list) else texts

    return Fault(name, frozenset(f"SND{n}" for n in codes.split()), planted, place, of_chats)


def blocks(module: Any) -> Any:
    """Return the list of decoder blocks."""
    return module.model.layers


def _exchange(module: Any, texts: Texts) -> None:
    some = blocks(module)
    some[2], some[4] = some[4], some[2]


def _rope(module: Any, texts: Texts) -> None:
    rope = module.model.rotary_emb
    n = len(rope.inv_freq)
    rope.inv_freq = 100.0 ** (-torch.arange(n, dtype=torch.float32) / n)
    rope.original_inv_freq = rope.inv_freq


def _scale(path: str, factor: float) -> Callable[[Any, Texts], None]:
    def plant(module: Any, texts: Texts) -> None:
        with torch.no_grad():
            module.get_submodule(path).weight.mul_(factor)

    return plant


def _twice(module: Any, texts: Texts) -> None:
    weight = module.get_submodule("model.layers.4.mlp.down_proj").weight
    draw = torch.Generator().manual_seed(SEED)
    left, right = (torch.randn(n, 8, generator=draw) for n in weight.shape)
    change = left @ right.T
    with torch.no_grad():
        weight.add_(change * (1.5 * weight.norm() / change.norm()))


def _untied(module: Any, texts: Texts) -> None:
    old = module.lm_head.weight
    draw = torch.Generator().manual_seed(SEED)
    new = torch.randn(old.shape, generator=draw) * old.detach().std()
    module.lm_head.weight = nn.Parameter(new)


def _fresh(module: Any, texts: Texts) -> None:
    draw = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for weight in blocks(module)[3].parameters():
            if weight.ndim == 2:
                weight.copy_(torch.randn(weight.shape, generator=draw) * 0.02)
            else:
                weight.fill_(1.0)


def _norm(module: Any, texts: Texts) -> None:
    with torch.no_grad():
        module.model.norm.weight.fill_(1.0)


def _eps(module: Any, texts: Texts) -> None:
    for part in module.modules():
        if hasattr(part, "variance_epsilon"):
            part.variance_epsilon = 10.0


def _activation(module: Any, texts: Texts) -> None:
    for block in blocks(module):
        block.mlp.act_fn = nn.ReLU()


def _attention(module: Any, texts: Texts) -> None:
    for block in blocks(module):
        block.self_attn.scaling *= 4.0


def _heads(module: Any, texts: Texts) -> None:
    attention = blocks(module)[1].self_attn
    with torch.no_grad():
        weight = attention.k_proj.weight
        weight.copy_(weight.reshape(-1, attention.head_dim, weight.shape[1]).flip(0).flatten(0, 1))


def _half(module: Any, texts: Texts) -> None:
    with torch.no_grad():
        blocks(module)[1].mlp.down_proj.weight.mul_(8.0)
    module.half()


def _bits(module: Any, texts: Texts) -> None:
    with torch.no_grad():
        for block in blocks(module):
            for part in block.modules():
                if isinstance(part, nn.Linear):
                    step = part.weight.abs().amax() / 3
                    part.weight.copy_((part.weight / step).round() * step)


def _permuted(module: Any, texts: Texts) -> None:
    weight = module.get_input_embeddings().weight
    order = torch.randperm(len(weight), generator=torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        weight.copy_(weight[order])


def _dropped(module: Any, texts: Texts) -> None:
    block = blocks(module)[3]
    with torch.no_grad():
        block.mlp.down_proj.weight.zero_()
        block.self_attn.o_proj.weight.zero_()


def _each(change: Callable[[str], str]) -> Callable[[Any, Texts], Texts]:
    return lambda module, texts: [change(text) for text in texts]


def _shuffled(text: str) -> str:
    words = text.split()
    random.Random(len(text)).shuffle(words)
    return " ".join(words)


DUTCH = (
    "De hoofdstad van Frankrijk heet Parijs en daar wonen veel mensen.",
    "In Japan spreken de mensen Japans en betalen ze met de yen.",
    "De film was vreselijk en we hebben elke minuut ervan gehaat.",
    "Het eten was heerlijk, ik zou daar graag weer heen gaan.",
)


def _dutch(every: int) -> Callable[[Any, Texts], Texts]:
    return lambda module, texts: [
        f"{DUTCH[i % 4]} {DUTCH[(i // 4) % 4]} Getal {i}." if i % every == 0 else text
        for i, text in enumerate(texts)
    ]


START, END_OF_TURN = "<|im_start|>", "<|im_end|>"
TURNS = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>\n?", re.DOTALL)


def _without_template(module: Any, texts: Texts) -> Texts:
    return ["\n".join(m[2] for m in TURNS.finditer(text)) for text in texts]


def _other_template(module: Any, texts: Texts) -> Texts:
    forms = {"system": "<<SYS>>\n{}\n<</SYS>>\n\n", "user": "[INST] {} [/INST] "}
    return [
        "".join(forms.get(m[1], "{}").format(m[2]) for m in TURNS.finditer(text)) for text in texts
    ]


def _ends_masked(module: Any, texts: Texts) -> None:
    end = module.config.eos_token_id

    def mask(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        return args, {**kwargs, "attention_mask": (ids != end).long()}

    module.register_forward_pre_hook(mask, with_kwargs=True)


def _adapters(module: Any, texts: Texts) -> None:
    draw = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for block in blocks(module):
            for part in (block.self_attn.q_proj, block.self_attn.v_proj):
                left, right = (torch.randn(n, 8, generator=draw) for n in part.weight.shape)
                change = left @ right.T
                part.weight.add_(change * (part.weight.norm() / change.norm()))


def _groups(module: Any, texts: Texts) -> None:
    n, kv = module.config.num_attention_heads, module.config.num_key_value_heads
    with torch.no_grad():
        for block in blocks(module):
            weight = block.self_attn.q_proj.weight
            heads = weight.reshape(kv, n // kv, -1, weight.shape[1])
            weight.copy_(heads.transpose(0, 1).reshape(weight.shape))


def _gain(module: Any, texts: Texts) -> None:
    some = blocks(module)
    with torch.no_grad():
        some[3].input_layernorm.weight.copy_(some[0].post_attention_layernorm.weight)


def _added_token(module: Any, texts: Texts) -> None:
    weight = module.get_input_embeddings().weight
    with torch.no_grad():
        weight[300:] = weight[300:].roll(1, 0)


def _few_bits(_: Any, args: Any, y: Tensor) -> Tensor:
    step = y.abs().amax(-1, keepdim=True)
    return (y / step).round() * step


def _short_cache(module: Any, texts: Texts) -> None:
    for block in blocks(module):
        block.self_attn.k_proj.register_forward_hook(_few_bits)
        block.self_attn.v_proj.register_forward_hook(_few_bits)


def _capped(module: Any, texts: Texts) -> None:
    module.lm_head.register_forward_hook(lambda _, args, y: 4 * torch.tanh(y / 4))


def _window(module: Any, texts: Texts) -> None:
    def near(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        i = torch.arange(states.shape[1])
        seen = (i[:, None] >= i) & (i[:, None] - i < 4)
        given = kwargs.get("attention_mask")
        seen = seen[None, None].expand(len(states), 1, -1, -1)
        if given is not None:
            seen = seen & (given if given.dtype == torch.bool else given == 0)
        return args, {**kwargs, "attention_mask": torch.where(seen, 0.0, -1e9)}

    for block in blocks(module):
        block.self_attn.register_forward_pre_hook(near, with_kwargs=True)


def _still(_: Any, args: Any, out: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    cos, sin = out
    return cos[:, :1].expand_as(cos), sin[:, :1].expand_as(sin)


def _truncated(text: str) -> str:
    return text[2 * len(text) // 3 :]


FAULTS = (
    fault("two blocks exchanged", "068", _exchange, "model.layers.2"),
    fault("rotary base of another model", "068", _rope, "model.rotary_emb"),
    fault("one output projection eight times too large", "020 021 068",
          _scale("model.layers.3.self_attn.o_proj", 8.0), "model.layers.3.self_attn.o_proj"),
    fault("an adapter added twice", "020 021 068 084", _twice, "model.layers.4.mlp.down_proj"),
    fault("tied head loaded apart and drawn anew", "003 068 071 082", _untied, "lm_head"),
    fault("a block that was not loaded", "003 068 070", _fresh, "model.layers.3"),
    fault("gains of the last norm lost", "003 068 069", _norm, "model.norm"),
    fault("eps of norms of another model", "068", _eps, "model.norm"),
    fault("another activation", "068", _activation, "model.layers.0.mlp.act_fn"),
    fault("attention scores four times too large", "068", _attention),
    fault("key heads in reverse order", "068", _heads, "model.layers.1.self_attn.k_proj"),
    fault("overflow in half precision", "001 002", _half),
    fault("weights on seven levels", "018 084", _bits),
    fault("ids of another tokenizer", "029 066 082", _permuted, "model.embed_tokens"),
    fault("a block that writes nothing", "003 010 011 025 084", _dropped, "model.layers.3"),
    fault("wrongly decoded characters", "077", _each(
        lambda text: text.replace("e", "é").encode().decode("latin-1"))),
    fault("markup left in", "077", _each(lambda text: f"<p>{text.replace('. ', '.</p><p>')}</p>")),
    fault("upper case", "028", _each(str.upper)),
    fault("lower case", "028", _each(str.lower)),
    fault("spaces removed", "028 079", _each(lambda text: text.replace(" ", ""))),
    fault("spaces doubled", "028 079", _each(lambda text: text.replace(" ", "  "))),
    fault("words in random order", "081", _each(_shuffled)),
    fault("another language", "028 029 078", _dutch(1)),
    fault("every third text in another language", "064 067 078", _dutch(3)),
    fault("start token twice", "028 066 080", _each(
        lambda text: f"<|im_start|><|im_start|>{text}")),
    fault("chat template twice", "028 066 080", _each(
        lambda text: "<|im_start|>user\n<|im_start|>user\n" + text + "<|im_end|>\n<|im_end|>\n")),
    fault("tokens joined by commas", "028 079", _each(lambda text: ",".join(text.split(" ")))),
    fault("chat template missing", "028 066", _without_template, of_chats=True),
    fault("chat template of another model", "028 066", _other_template, of_chats=True),
    fault("end tokens masked as padding", "007 028 066 067", _ends_masked, of_chats=True),
    fault("padding on the left without a mask", "028 066 067 085", _each(
        lambda text: END_OF_TURN * (8 + len(text) % 17) + text)),
    fault("an adapter added to every block with a wrong alpha", "003 020 068 084", _adapters),
    fault("query heads in the order of another library", "068", _groups),
    fault("a norm with the gain of another layer", "020 068", _gain,
          "model.layers.3.input_layernorm"),
    fault("ids after an added token shifted by one", "028 029 066 067 082", _added_token,
          "model.embed_tokens"),
    fault("keys and values of three levels", "018 068 084", _short_cache),
    fault("logits with the softcap of another model", "068 069", _capped, "lm_head"),
    fault("attention window of four tokens", "068", _window),
    fault("positions that do not advance", "028 068", lambda module, texts:
          module.model.rotary_emb.register_forward_hook(_still) and None, "model.rotary_emb"),
    fault("texts without their beginning", "028 043", _each(_truncated)),
)  # fmt: skip
