"""What compression costs and saves: calibration, packed layers, caches, coding, opening."""

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.child import MIB, ChildError, resident, run_child
from benchmarks.peers import PEER_OF, UNMEASURED, in_peer
from benchmarks.protocol import AGAIN, PLAIN, interleaved, ratio_of
from benchmarks.rows import Row, not_measured
from benchmarks.size import Size

PEER = PEER_OF["cache_runner"]
GRAMS, NARROW, FASTER = 1.9, 1.1, 1 / 1.7
RESIDENT, CACHE_BYTES, CACHE_TIME, LOWER, OPENING = 0.30, 0.27, 1.05, 1.0, 1.2
SLACK = 0.01
"""Two implementations of a rule differ in the last digits of scores: single tokens are swapped."""


def language_model(depth: int, width: int, vocabulary: int = 512) -> Any:
    """Return a random language model with rotations."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=depth,
        num_attention_heads=max(width // 64, 1),
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def compress_rows(size: Size) -> Iterator[Row]:
    """Calibration, GPTQ, packed layers, their memory and how fast they open; lossless coding."""
    with torch.no_grad():
        yield from _calibration(size)
        yield from _layers(size)
        yield from _held(size)
        yield _coding(size)


def cache_rows(size: Size) -> Iterator[Row]:
    """Memory and time of decoding with smaller caches, their errors, and kvpress."""
    with torch.no_grad():
        yield from _decoding(size)
        yield from _parts(size)
        yield _across(size)
    yield from _against_kvpress(size)


def _row(size: Size, name: str, what: str, arms: dict[str, Any], arm: str, budget: float) -> Row:
    taken = interleaved(arms, size.rounds)
    found = ratio_of(taken, arm)
    return Row(name, what, found.median, "x", budget, found.spread, found.rounds, found.noise)


def _calibration(size: Size) -> Iterator[Row]:
    from sonde.compress import GPTQ, layer_grams
    from sonde.core.inputs import Model
    from sonde.data.opening import open_inputs

    depth, width = size.pick((12, 768), (2, 64))
    net = language_model(depth, width)
    model = Model(net, config=net.config, task="causal")
    draw = torch.Generator().manual_seed(1)
    texts = torch.randint(5, 500, size.pick((4, 256), (2, 16)), generator=draw)
    inputs = open_inputs(model, [{"input_ids": x} for x in texts], batch_size=4)

    def plain() -> Any:
        return net(texts)

    layers = tuple(n for n, m in net.named_modules() if isinstance(m, nn.Linear))
    thin = tuple(n for n in layers if "down_proj" not in n)
    arms: dict[str, Any] = {PLAIN: plain, AGAIN: plain}
    arms["all"] = lambda: layer_grams(model, inputs, layers=layers, progress=False)
    arms["thin"] = lambda: layer_grams(model, inputs, layers=thin, progress=False)
    taken = interleaved(arms, min(size.rounds, 5), warm_ups=1)
    for arm, words, budget in (
        ("all", "all inputs", GRAMS),
        ("thin", "without the wide inputs of MLPs", NARROW),
    ):
        found = ratio_of(taken, arm)
        what = f"second moments of {depth} x {width}, {texts.numel()} tokens, {words}"
        yield Row("compress", what, found.median, "x", budget, found.spread, found.rounds,
                  found.noise)  # fmt: skip
    grams = layer_grams(model, inputs, layers=layers, progress=False)
    began = time.process_time()
    GPTQ(bits=4, group=32, layers=layers).plan(model, {"calibration": grams})
    what = f"GPTQ, 4 bit, all {len(layers)} linear layers of {depth} x {width}, from moments"
    note = "no budget: llm-compressor asks for another torch, so no peer runs beside it"
    yield Row("compress", what, time.process_time() - began, "s", note=note)


def _layers(size: Size) -> Iterator[Row]:
    from sonde.compress import RTN
    from sonde.core.inputs import Model

    wide, out = size.pick((512, 2048), (64, 128))
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(wide, out)).eval()
    for bits, n, budget in ((8, 1, FASTER), (8, 64, 1 / 3), (4, 1, FASTER), (4, 64, 1.0)):
        packed = RTN(bits=bits, group=32 if bits == 4 else 0).plan(Model(plain)).fold(plain)
        x = torch.randn(n, wide)

        def many(net: Any, x: Tensor = x) -> Callable[[], Any]:
            def run() -> None:
                for _ in range(size.pick(20, 2)):
                    net(x)

            return run

        arms = {PLAIN: many(plain), "packed": many(packed), AGAIN: many(plain)}
        layer: Any = packed[0]
        row = _row(size, "compress", f"int{bits} linear {wide} -> {out}, {n} rows, against float32",
                   arms, "packed", budget)  # fmt: skip
        yield replace(row, note=f"by {layer.fastest()}; {row.note}")


def _held(size: Size) -> Iterator[Row]:
    depth, width = size.pick((12, 768), (2, 64))
    with tempfile.TemporaryDirectory() as place:
        folder, small = Path(place) / "plain", Path(place) / "small"
        net = language_model(depth, width)
        net.save_pretrained(folder)
        _packed(folder, small)
        sizes = {path: _bytes(path) for path in (folder, small)}
        try:
            found = {
                path: run_child("benchmarks.compress:opened", steady=True, folder=str(path))
                for path in (folder, small)
            }
        except ChildError as error:
            yield not_measured("compress", "resident memory of a 4-bit model", str(error))
            return
    what = f"of a 4-bit {depth} x {width} model against float32"
    held = found[small]["held"] / max(found[folder]["held"], 1e-9)
    note = f"{found[small]['held']:.0f} MiB against {found[folder]['held']:.0f}, after a forward"
    yield Row("compress", f"resident memory {what}", held, "x", RESIDENT, note=note)
    speed = [found[path]["seconds"] / sizes[path] for path in (folder, small)]
    note = f"{found[small]['seconds']:.2f} s against {found[folder]['seconds']:.2f}"
    yield Row("compress", f"time for each byte to open it, {what}", speed[1] / speed[0], "x",
              OPENING, note=note)  # fmt: skip


def _packed(folder: Path, small: Path) -> None:
    from sonde import load
    from sonde.compress import RTN

    model = load(str(folder))
    RTN(bits=4, group=32).plan(model).save(str(folder), small)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def opened(folder: str) -> dict[str, float]:
    """Return how much a process grows by a model that it opens and runs, and how long it takes."""
    import gc

    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    import sonde.weights  # noqa: F401 - registers packed weights; modules are no part of a model

    tiny = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                       num_attention_heads=1)  # fmt: skip
    ids = torch.arange(4)[None]
    with torch.no_grad():
        LlamaForCausalLM(tiny)(ids)  # imports and first allocations
        gc.collect()
        before, began = resident("VmRSS"), time.process_time()
        net = AutoModelForCausalLM.from_pretrained(folder)
        seconds = time.process_time() - began
        net(ids)
        gc.collect()
        return {"held": resident("VmRSS") - before, "seconds": seconds, "mib": MIB}


def _coding(size: Size) -> Row:
    from sonde import load
    from sonde.compress import SequenceCoder

    what = "lossless coding: bytes above the model's cross-entropy, over what is allowed"
    try:
        model = load("sonde:stdlib")
        text = (Path(torch.__file__).parent / "functional.py").read_bytes()[: size.pick(1024, 64)]
        ids = torch.tensor(list(text))
        coded = len(SequenceCoder(model).encode(ids))
        ideal = _cross_entropy(model, ids) / 8
    except ImportError as error:
        return not_measured("compress", what, str(error))
    allowed = 64 + 0.001 * ideal
    note = f"{coded} bytes against {ideal:.1f}"
    return Row("compress", what, (coded - ideal) / allowed, "x", 1.0, note=note)


def _cross_entropy(model: Any, ids: Tensor) -> float:
    """Return bits of a text, in windows as long as the model reads, each behind a start token."""
    total = 0.0
    for part in ids.split(model.config.max_position_embeddings):
        log = model.module(torch.cat([part.new_zeros(1), part])[None, :-1]).logits[0]
        total -= float(log.double().log_softmax(-1).gather(1, part[:, None]).sum())
    return total / math.log(2)


def _decoding(size: Size) -> Iterator[Row]:
    """Time tokens at eight places of a text; the tokens between are read in one call."""
    from transformers import DynamicCache

    from sonde.compress import KeyDiff, RecentCache, SnapKV
    from sonde.tap.cache.evicting import caching

    depth, width, prompt, new = size.pick((12, 768, 512, 512), (2, 64, 16, 16))
    part, each = new // 8, size.pick(8, 1)
    net = language_model(depth, width)
    ids = torch.randint(5, 500, (1, prompt + new), generator=torch.Generator().manual_seed(2))
    rules = {type(rule).__name__: rule for rule in (RecentCache(0.25), KeyDiff(0.25), SnapKV(0.25))}
    with contextlib.ExitStack() as blocks:
        caches: dict[str, Any] = {n: blocks.enter_context(caching(net, rules[n])) for n in rules}
        caches |= {name: DynamicCache(config=net.config) for name in (PLAIN, AGAIN)}
        done, taken = 0, {name: list[float]() for name in caches}
        for end in range(prompt + part, prompt + new + 1, part):
            for cache in caches.values():
                net(ids[:, done : end - each], cache=cache)
            arms = {name: lambda c=c, x=ids[:, :1]: net(x, cache=c) for name, c in caches.items()}
            for name, found in interleaved(arms, each, warm_ups=0).items():
                taken[name].append(sum(found))
            done = end
        plain = sum(2 * layer.keys.nbytes for layer in caches[PLAIN].layers)
        for name in rules:
            what = f"decoding {new} tokens behind {prompt}, {depth} x {width}, {name}(0.25)"
            held = caches[name].size_bytes / plain
            yield Row("cache", f"{what}: bytes of the cache", held, "x", CACHE_BYTES)
            found = ratio_of(taken, name)
            note = f"{8 * each} tokens timed; {found.noise}"
            yield Row("cache", f"{what}: time", found.median, "x", CACHE_TIME, found.spread,
                      found.rounds, note)  # fmt: skip


def _parts(size: Size) -> Iterator[Row]:
    from sonde.compress import QuantCache

    draw = torch.Generator().manual_seed(4)
    n, width = size.pick((256, 64), (64, 16))
    low = torch.randn(1, 2, n, 6, generator=draw) @ torch.randn(1, 2, 6, width, generator=draw)
    x = low + 0.3 * torch.randn(low.shape, generator=draw)
    x = x + 40 * torch.randn(low.shape, generator=draw) * (
        torch.rand(low.shape, generator=draw) < 0.005
    )
    real = torch.ones(1, n, dtype=torch.bool)
    ways = {"bits": {}, "rank": {"rank": 4}, "outliers": {"outliers": 0.02}}
    ways["all"] = ways["rank"] | ways["outliers"]
    for bits in (2, 4):
        errors = {
            name: float((QuantCache(bits=bits, **more).pack(x, x, real).unpack()[1] - x).norm())
            for name, more in ways.items()
        }
        parts = min(errors[name] for name in ("bits", "rank", "outliers"))
        note = ", ".join(f"{name} {e / float(x.norm()):.3f}" for name, e in errors.items())
        what = f"GEAR, {bits} bit: error of values against the best of its parts"
        yield Row("cache", what, errors["all"] / parts, "x", LOWER, note=note)


def _across(size: Size) -> Row:
    from sonde import load
    from sonde.compress import CrossLayerCache
    from sonde.data.opening import open_inputs
    from sonde.tap.cache.evicting import caching

    model = load("sonde:stdlib")
    inputs = open_inputs(model, "sonde:stdlib/test").first(size.pick(8, 2))
    batch = next(iter(inputs.batches(0, len(inputs))))
    errors: dict[int, float] = {}
    for layers in (1, 2, 3):
        packing = CrossLayerCache(layers=layers, keep=0.3, recent=2**30)
        with caching(model, packing) as cache:
            net: Any = model.module
            net(**batch.kwargs, cache=cache)
            lost = whole = 0.0
            for group in cache.groups[: 6 // layers]:
                keys, values, real = group.stacked(cache.get_seq_length())
                found = packing.pack(keys, values, real).unpack()
                at = real[:, None, :, None]
                for new, old in zip(found, (keys, values), strict=True):
                    lost += float(((new - old) * at).square().sum())
                    whole += float((old * at).square().sum())
            errors[layers] = lost / whole
    note = ", ".join(f"{n} layers {100 * e:.2f} %" for n, e in errors.items())
    best = min(errors[n] for n in (2, 3))
    what = "cache across layers against each layer alone, 30 % of the bytes: squared error"
    return Row("cache", what, best / errors[1], "x", LOWER, note=note)


def _against_kvpress(size: Size) -> Iterator[Row]:
    what = f"KL behind a prompt with a quarter of its keys, against {PEER}"
    try:
        found = in_peer("cache_runner", size.offline)("divergences", n_texts=size.pick(8, 1))
    except UNMEASURED as error:
        yield not_measured("cache", what, str(error))
        return
    for name, one in found["rules"].items():
        note = f"{one['ours']:.4f} against {one['theirs']:.4f} nats; {found['peer']}"
        yield Row("cache", f"{what}: {name}", one["ours"] / one["theirs"], "x", 1.0, SLACK,
                  found["n"], note)  # fmt: skip
    what = "SnapKV in a padded batch of 8 against each text alone: largest gap of logits"
    yield Row("cache", what, found["padded"], "", 1e-4, note=f"{PEER} takes one text at a time")
