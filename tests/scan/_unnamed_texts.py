"""Faults of two language models: the shipped one, and a small one of prose that is trained here."""

import ast
import html
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import sonde
from scan._unnamed import Unnamed
from scan._zoo import quiet
from sonde.core.inputs import Model
from sonde.report import Report

LIBRARY = Path(os.__file__).parent
PIECE, TEXTS = 144, 112
Words = Callable[[str], str]
Change = Callable[[Any], object]


@cache
def shipped() -> Model:
    """Return the shipped language model of bytes."""
    return sonde.load("sonde:stdlib", device="cpu")


@cache
def source_texts() -> list[str]:
    """Return the middle of modules of the standard library."""
    found = []
    for path in sorted(LIBRARY.glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        if len(text) > 3 * PIECE:
            found.append(text[len(text) // 2 :][:PIECE])
    return [t for t in found if len(t.encode()) >= PIECE][:TEXTS]


@cache
def docstrings() -> list[str]:
    """Return the longer docstrings of the standard library, in an order drawn by a seed."""
    found: dict[str, None] = {}
    for path in sorted(LIBRARY.glob("*.py")) + sorted(LIBRARY.glob("*/*.py")):
        if any(part in ("test", "site-packages", "idlelib", "lib2to3") for part in path.parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                if text and len(text) > 240:
                    found.setdefault(text)
    texts = list(found)
    return [texts[i] for i in np.random.default_rng(0).permutation(len(texts))]


@cache
def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer of 384 tokens that learned the docstrings.

    It is kept: tokens of equal counts get other numbers in another process.
    """
    kept = folder / "prose.json"
    if kept.exists():
        return PreTrainedTokenizerFast(tokenizer_file=str(kept), pad_token="<pad>")
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=["<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    words.train_from_iterator(docstrings()[TEXTS:], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    words.save(str(kept))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>")


class Prose:
    """A small GPT-2 of docstrings, and the same after a tenth of its steps."""

    def __init__(self, folder: Path, steps: int = 900) -> None:
        torch.manual_seed(0)
        self.tokenizer = tokenizer(folder)
        config = GPT2Config(
            vocab_size=384, n_embd=96, n_layer=5, n_head=4, n_positions=96,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
            tie_word_embeddings=False,
        )  # fmt: skip
        self.net, self.early = (
            GPT2LMHeadModel(config).eval()  # pyright: ignore[reportArgumentType]
            for _ in range(2)
        )
        kept = folder / "prose.pt"
        if not kept.exists():
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(self._trained(steps), kept)
        late, early = torch.load(kept, weights_only=True)
        self.net.load_state_dict(late)
        self.early.load_state_dict(early)

    @torch.enable_grad()
    def _trained(self, steps: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        ids = self.tokenizer("\n\n".join(docstrings()[TEXTS:]))["input_ids"]
        tokens = torch.tensor(ids)
        net, early = self.net.train(), {}
        optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
        for step in range(steps):
            if step == steps // 10:
                early = {k: v.clone() for k, v in net.state_dict().items()}
            start = torch.randint(len(tokens) - 64, (24, 1))
            batch = tokens[start + torch.arange(64)]
            optimiser.zero_grad()
            net(input_ids=batch, labels=batch).loss.backward()
            optimiser.step()
            schedule.step()
        return net.state_dict(), early


@cache
def prose(folder: Path) -> Prose:
    return Prose(folder)


def prose_texts() -> list[str]:
    """Return texts that the small model has not seen."""
    return docstrings()[:TEXTS]


def scanned(model: Model, change: Change | None, texts: list[str], longest: int) -> Report:
    module = model.module
    if change is not None:
        module = deepcopy(module).requires_grad_(False)
        with torch.no_grad():
            change(module)
    changed = Model(module, model.processor, module.config, model.name, "causal")
    items: list[dict[str, Any]] = [{"text": t} for t in texts]
    return sonde.scan(changed, items, settings=quiet(), max_length=longest)


def _rows_exchanged(path: str, pairs: str, own: Callable[[], Any]) -> Change:
    def change(module: nn.Module) -> None:
        weight = module.get_parameter(path)
        for a, b in (tuple(pair) for pair in pairs.split()):
            i, j = (own()(letter)["input_ids"][0] for letter in (a, b))
            weight[[i, j]] = weight[[j, i]]

    return change


def _theta(new: float) -> Change:
    def change(module: Any) -> None:
        width = module.config.head_dim
        steps = torch.arange(0, width, 2).float() / width
        module.model.rotary_emb.inv_freq.copy_(new**-steps)

    return change


def _interleaved(module: Any) -> None:
    """Give queries and keys as a checkpoint with rotated pairs side by side has them."""
    n, width = module.config.num_attention_heads, module.config.head_dim
    order = torch.arange(n * width).reshape(n, 2, width // 2).transpose(1, 2).flatten()
    for layer in module.model.layers:
        for part in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            part.weight.copy_(part.weight[order])


def _at(path: str, what: Callable[[Tensor], Tensor]) -> Change:
    """Return a change of what a part gives, for ever: a fault in its forward."""

    def change(module: nn.Module) -> None:
        for name, part in module.named_modules():
            if _fits(path, name):
                inner = part.forward

                def forward(*args: Any, _inner: Any = inner, **kwargs: Any) -> Any:
                    out = _inner(*args, **kwargs)
                    return (what(out[0]), *out[1:]) if isinstance(out, tuple) else what(out)

                part.forward = forward

    return change


def _fits(path: str, name: str) -> bool:
    mine, other = path.split("."), name.split(".")
    return len(mine) == len(other) and all(a in ("*", b) for a, b in zip(mine, other, strict=True))


def _early_blocks(model: Prose, which: tuple[int, ...]) -> Change:
    def change(module: Any) -> None:
        for i in which:
            module.transformer.h[i].load_state_dict(model.early.transformer.h[i].state_dict())

    return change


def _with_epsilon(eps: float) -> Change:
    def change(module: Any) -> None:
        for part in module.modules():
            if "variance_epsilon" in vars(part):
                part.variance_epsilon = eps

    return change


def _act(new: nn.Module) -> Change:
    def change(module: Any) -> None:
        for layer in module.model.layers:
            layer.mlp.act_fn = new

    return change


def _exchange_parts(module: Any) -> None:
    for layer in module.model.layers:
        layer.mlp.gate_proj, layer.mlp.up_proj = layer.mlp.up_proj, layer.mlp.gate_proj


def _blocks_exchanged(module: Any) -> None:
    layers = module.model.layers
    layers[2], layers[4] = layers[4], layers[2]


def _without_scale(module: Any) -> None:
    for layer in module.model.layers:
        layer.self_attn.scaling = 1.0


SOURCE_WORDS: dict[str, tuple[str, Words]] = {
    "lower case": (r"upper.?case|capital", str.lower),
    "upper case": (r"lower.?case|in small letters", str.upper),
    "newlines lost": (r"line break|newline|\\n", lambda t: t.replace("\n", " ")),
    "tabs for blanks": (r"\btabs?\b|\\t", lambda t: t.replace("    ", "\t")),
    "html escaped": (r"html|&", lambda t: html.escape(t)),
    "crlf": (r"carriage|\\r|crlf", lambda t: t.replace("\n", "\r\n")),
    "digits masked": (
        r"digit|\b0\b", lambda t: "".join("0" if c.isdigit() else c for c in t)
    ),
    "blanks doubled": (r"blank|space", lambda t: t.replace(" ", "  ")),
    "curly quotes": (r"quot|['\"“”’]", lambda t: t.replace("'", "’").replace('"', "”")),
}  # fmt: skip

SOURCE_PARTS: dict[str, tuple[str, Change]] = {
    "embedding rows exchanged": (
        r"embed.*(rows|tokens)|exchang", _rows_exchanged(
            "model.embed_tokens.weight", "et ao in", lambda: shipped().processor
        )
    ),
    "head rows exchanged": (
        r"(head|answer).*(rows|tokens)|exchang", _rows_exchanged(
            "lm_head.weight", "et ao in", lambda: shipped().processor
        )
    ),
    "theta 300": (r"rope|theta|rotar|position", _theta(300.0)),
    "interleaved rotation": (r"rope|rotar|position|half", _interleaved),
    "keys four positions late": (
        r"k_proj|key|attention", _at(
            "model.layers.*.self_attn.k_proj",
            lambda x: nn.functional.pad(x, (0, 0, 4, 0))[:, : x.shape[1]],
        )
    ),
    "1/sqrt(d) left out": (r"q_proj|k_proj|attention|scal|sharp", _without_scale),
    "gelu for the gate's silu": (r"gelu|silu|act_fn|activation", _act(nn.GELU())),
    "relu for the gate's silu": (r"relu|silu|act_fn|activation", _act(nn.ReLU())),
    "epsilon .3 in norms": (r"eps", _with_epsilon(0.3)),
    "mlp of layer 3 three times": (
        r"layers\.3", _at("model.layers.3.mlp", lambda x: 3 * x)
    ),
    "attention of layer 1 eight times": (
        r"layers\.1\b", _at("model.layers.1.self_attn.o_proj", lambda x: 8 * x)
    ),
    "gate and up exchanged": (r"gate_proj|up_proj|mlp", _exchange_parts),
    "layers 2 and 4 exchanged": (r"layers\.[24]", _blocks_exchanged),
    "attention of layer 4 turned": (
        r"layers\.4", _at("model.layers.4.self_attn.o_proj", lambda x: -x)
    ),
}  # fmt: skip


def _mojibake(text: str) -> str:
    return text.replace("'", "\u2019").encode().decode("latin-1")


PROSE: dict[str, tuple[str, Words]] = {
    "prose in lower case": (r"upper.?case|capital", str.lower),
    "prose in upper case": (r"lower.?case", str.upper),
    "prose without newlines": (r"line break|newline|\\n", lambda t: " ".join(t.split())),
    "prose read wrongly (latin-1)": (r"latin|encod|utf|â|beyond ASCII", _mojibake),
    "prose decomposed": (
        r"unicode|NFC|accent|compos|beyond ASCII",
        lambda t: unicodedata.normalize("NFD", t.replace("e", "é").replace("a", "ä")),
    ),
    "prose without punctuation": (
        r"punctuation|['.,]", lambda t: "".join(c for c in t if c.isalnum() or c.isspace())
    ),
}  # fmt: skip


def text_faults(folder: Path) -> Iterator[Unnamed]:
    """Yield the faults of both models, and each model as it is."""
    plain = list(source_texts())

    def of_source(change: Change | None, texts: list[str]) -> Callable[[], Report]:
        return lambda: scanned(shipped(), change, texts, PIECE)

    yield Unnamed("source", "(as it is)", r"^$", of_source(None, plain))
    for name, (says, words) in SOURCE_WORDS.items():
        yield Unnamed("source", name, says, of_source(None, [words(t) for t in plain]))
    for name, (says, change) in SOURCE_PARTS.items():
        yield Unnamed("source", name, says, of_source(change, plain))
    yield from _of_prose(folder)


def _of_prose(folder: Path) -> Iterator[Unnamed]:
    def small() -> Model:
        net = prose(folder).net
        return Model(net, tokenizer(folder), net.config, "prose", "causal")

    def of(change: Change | None, words: Words | None) -> Callable[[], Report]:
        def scan() -> Report:
            texts = prose_texts() if words is None else [words(t) for t in prose_texts()]
            return scanned(small(), change, texts, 96)

        return scan

    yield Unnamed("prose", "(as it is)", r"^$", of(None, None))
    for name, (says, words) in PROSE.items():
        yield Unnamed("prose", name, says, of(None, words))
    parts: dict[str, tuple[str, Change]] = {
        "head of an older step": (
            r"head", lambda m: m.lm_head.weight.copy_(prose(folder).early.lm_head.weight)
        ),
        "early weights in three of five": (
            r"h\.[134]", lambda m: _early_blocks(prose(folder), (1, 3, 4))(m)
        ),
        "update of block 2 twice": (r"h\.2", _at("transformer.h.2.mlp", lambda x: 2 * x)),
        "update of block 2 eight times": (r"h\.2", _at("transformer.h.2.mlp", lambda x: 8 * x)),
        "learned positions doubled": (
            r"position|wpe", lambda m: m.transformer.wpe.weight.mul_(3)
        ),
        "positions from the end": (
            r"position|wpe",
            lambda m: m.transformer.wpe.weight.copy_(m.transformer.wpe.weight.flip(0)),
        ),
        "norm of block 0 left out": (
            r"h\.0|ln_1", lambda m: setattr(m.transformer.h[0], "ln_1", nn.Identity())
        ),
        "embedding rows exchanged": (
            r"embed.*(rows|tokens)|exchang|wte", _rows_exchanged(
                "transformer.wte.weight", "et ao", lambda: tokenizer(folder)
            )
        ),
        "last norm's weight 1": (
            r"ln_f|norm", lambda m: m.transformer.ln_f.weight.fill_(1.0)
        ),
    }  # fmt: skip
    for name, (says, change) in parts.items():
        yield Unnamed("prose", name, says, of(change, None))


if __name__ == "__main__":
    print(len(source_texts()), len(docstrings()))
    prose(Path(sys.argv[1]))
