"""Train the two shipped models anew: ``digits`` (images) and ``stdlib`` (bytes of Python source).

Seeded and resumable: a checkpoint is written every few minutes under ``train/`` and picked up by
the next start. ``export`` writes a checkpoint, finished or not, as a Hugging Face directory under
``src/sonde/data/models/`` with 16-bit safetensors and a model card with the figures and the curve.

    python tools/train_zoo.py digits
    python tools/train_zoo.py export digits
    python tools/train_zoo.py stdlib --steps 6000
    python tools/train_zoo.py export stdlib --full
"""

import argparse
import json
import math
import sys
import sysconfig
import time
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.core_model_loading import revert_weight_conversion

from sonde.data.shipped import load_digits

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "src" / "sonde" / "data" / "models"
WORK = ROOT / "train"

LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "encodings", "site-packages", "__pycache__"}


def stdlib_files() -> list[Path]:
    """Return every source file of the running standard library that the model may see."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return sorted(
        path
        for path in root.rglob("*.py")
        if not LEFT_OUT.intersection(path.relative_to(root).parts)
    )


def is_test(path: Path) -> bool:
    """Return whether a file belongs to the held-out tenth, by a hash of its relative path."""
    name = path.relative_to(sysconfig.get_paths()["stdlib"]).as_posix()
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little") % 10 == 0


CONTEXT = 256


def stdlib_config() -> LlamaConfig:
    """Return the architecture: seven Llama blocks of width 192 over 256 byte ids."""
    return LlamaConfig(
        vocab_size=256,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=7,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        attention_bias=False,
    )


def bits_per_byte(model: LlamaForCausalLM, files: list[bytes]) -> float:
    """Return teacher-forced bits per byte in pieces of the full context, without overlap."""
    total, count = 0.0, 0
    pieces = [f[i : i + CONTEXT] for f in files for i in range(0, len(f), CONTEXT)]
    pieces = sorted((p for p in pieces if len(p) > 1), key=len)
    model.eval()
    with torch.no_grad():
        for i in range(0, len(pieces), 32):
            batch = pieces[i : i + 32]
            width = max(map(len, batch))
            ids = torch.zeros(len(batch), width, dtype=torch.long)
            target = torch.full((len(batch), width), -100)
            for row, piece in enumerate(batch):
                values = torch.tensor(list(piece))
                ids[row, : len(piece)] = values
                target[row, : len(piece)] = values
            logits = model(input_ids=ids, use_cache=False).logits
            total += F.cross_entropy(
                logits[:, :-1].flatten(0, 1), target[:, 1:].flatten(), reduction="sum"
            ).item()
            count += int((target[:, 1:] >= 0).sum())
    model.train()
    return total / count / math.log(2)


def stdlib_optimizers(model: LlamaForCausalLM):
    """Return Muon for the matrices of the blocks and AdamW for embeddings, head and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "layers" in n)]
    muon = torch.optim.Muon(
        matrices, lr=0.01, momentum=0.95, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
    )
    adam = torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    return muon, adam


def schedule(step: int, steps: int) -> float:
    """Return the learning-rate factor: warm up, stay, then fall linearly over the last 40 %."""
    warm, fall = 100, int(0.4 * steps)
    return min(1.0, (step + 1) / warm, max(0.02, (steps - step) / fall))


STDLIB_KEPT = 250


def train_stdlib(steps: int, batch: int, seed: int) -> None:
    """Train the byte-level language model, with a checkpoint every ``STDLIB_KEPT`` steps."""
    torch.manual_seed(seed)
    files = stdlib_files()
    train = [p.read_bytes() for p in files if not is_test(p)]
    test = [p.read_bytes() for p in files if is_test(p)]
    corpus = torch.from_numpy(np.frombuffer(b"\n".join(train), dtype=np.uint8).copy())
    print(f"train {corpus.numel():,} bytes in {len(train)} files; test {sum(map(len, test)):,}")
    model = LlamaForCausalLM(stdlib_config())
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    optimizers = stdlib_optimizers(model)
    rates = [[g["lr"] for g in o.param_groups] for o in optimizers]
    first, curve = restore(model, optimizers)
    model.train()
    began, window = time.time(), []
    for step in range(first, steps):
        set_rates(optimizers, rates, schedule(step, steps))
        window = [
            *window[1 - STDLIB_KEPT :],
            one_step(model, optimizers, corpus, batch, seed, step),
        ]
        done = step + 1
        if done % 50 == 0:
            rate = (time.time() - began) / (done - first)
            print(
                f"step {done} train {bits(window[-50:]):.4f} bits/byte {rate:.2f} s/step",
                flush=True,
            )
        if done % STDLIB_KEPT == 0 or done == steps:
            value = bits_per_byte(model, [f[:4096] for f in test])
            curve.append([done, round(bits(window), 4), round(value, 4)])
            print(f"step {done} test(first 4 KiB of each file) {value:.4f} bits/byte", flush=True)
            keep(model, optimizers, done, curve)
    final = bits_per_byte(model.bfloat16().float(), test)
    print(f"final {final:.4f} bits per byte over all test bytes")
    (WORK / "stdlib.json").write_text(json.dumps({"bits_per_byte": final, "curve": curve}))


def bits(losses: list[float]) -> float:
    """Return the mean of losses in nats, in bits."""
    return sum(losses) / len(losses) / math.log(2)


def one_step(
    model: LlamaForCausalLM,
    optimizers: Sequence[torch.optim.Optimizer],
    corpus: torch.Tensor,
    batch: int,
    seed: int,
    step: int,
) -> float:
    """Train on one batch of pieces, drawn by the step's number alone, and return the loss."""
    draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
    start = torch.randint(0, corpus.numel() - CONTEXT, (batch,), generator=draw)
    ids = torch.stack([corpus[s : s + CONTEXT] for s in start]).long()
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item()


def set_rates(
    optimizers: Sequence[torch.optim.Optimizer], rates: list[list[float]], factor: float
) -> None:
    """Set every learning rate to its base times ``factor``."""
    for optimizer, base in zip(optimizers, rates, strict=True):
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * factor


def restore(
    model: LlamaForCausalLM, optimizers: Sequence[torch.optim.Optimizer]
) -> tuple[int, list[list[float]]]:
    """Load the checkpoint if there is one; return its step and the training curve."""
    checkpoint = WORK / "stdlib.pt"
    if not checkpoint.exists():
        return 0, []
    state = torch.load(checkpoint, weights_only=True)
    model.load_state_dict(state["model"])
    for name, optimizer in zip(("muon", "adam"), optimizers, strict=True):
        optimizer.load_state_dict(state[name])
    print(f"resumed at step {state['step']}")
    return state["step"], state["curve"]


def keep(
    model: LlamaForCausalLM,
    optimizers: Sequence[torch.optim.Optimizer],
    step: int,
    curve: list[list[float]],
) -> None:
    """Write the checkpoint in one rename."""
    WORK.mkdir(exist_ok=True)
    checkpoint = WORK / "stdlib.pt"
    temporary = checkpoint.with_suffix(".tmp")
    states = {n: o.state_dict() for n, o in zip(("muon", "adam"), optimizers, strict=True)}
    torch.save({"model": model.state_dict(), **states, "step": step, "curve": curve}, temporary)
    temporary.replace(checkpoint)


DIGITS_STEPS = 2400
DIGITS_BATCH = 64
DIGITS_KEPT = 400


def digits_config() -> ViTConfig:
    """Return the architecture: four blocks of width 64 over 4 x 4 patches of 2 x 2 pixels."""
    return ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        id2label={i: str(i) for i in range(10)},
        label2id={str(i): i for i in range(10)},
    )


def digits_tensors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return pixel values in [-1, 1], labels, and which rows are held out."""
    pixels, labels, is_test = load_digits()
    x = (torch.from_numpy(pixels).float()[:, None] / 255 - 0.5) / 0.5
    return x, torch.from_numpy(labels), torch.from_numpy(is_test)


def augmented(x: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Return images slightly turned, scaled, shifted and made noisy."""
    n = len(x)
    angle = (torch.rand(n, generator=draw) - 0.5) * 0.4
    scale = 1 + (torch.rand(n, generator=draw) - 0.5) * 0.3
    shift = (torch.rand(n, 2, generator=draw) - 0.5) * 0.3
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1)
    affine = torch.cat([turn.view(n, 2, 2) * scale[:, None, None], shift[:, :, None]], dim=2)
    grid = F.affine_grid(affine, list(x.shape), align_corners=False)
    moved = F.grid_sample(x + 1, grid, align_corners=False) - 1
    return moved + 0.05 * torch.randn(x.shape, generator=draw)


def accuracy(model: ViTForImageClassification, x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the share of images whose largest logit is the right one."""
    model.eval()
    with torch.no_grad():
        right = (model(pixel_values=x).logits.argmax(dim=1) == y).float().mean().item()
    model.train()
    return right


def train_digits(steps: int, seed: int) -> None:
    """Train and checkpoint the vision transformer on the digits that are not held out."""
    torch.manual_seed(seed)
    x, y, held = digits_tensors()
    train, labels, test, truth = x[~held], y[~held], x[held], y[held]
    model = ViTForImageClassification(digits_config())
    adam = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    WORK.mkdir(exist_ok=True)
    checkpoint, first, curve = WORK / "digits.pt", 0, []
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        adam.load_state_dict(state["adam"])
        first, curve = state["step"], state["curve"]
    model.train()
    for step in range(first, steps):
        draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = torch.randint(0, len(train), (DIGITS_BATCH,), generator=draw)
        adam.param_groups[0]["lr"] = 2e-3 * schedule(step, steps)
        logits = model(pixel_values=augmented(train[rows], draw)).logits
        loss = F.cross_entropy(logits, labels[rows], label_smoothing=0.05)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        done = step + 1
        if done % DIGITS_KEPT == 0 or done == steps:
            curve.append([done, round(loss.item(), 4), round(accuracy(model, test, truth), 4)])
            print(
                f"step {done} loss {curve[-1][1]:.4f} test accuracy {curve[-1][2]:.4f}", flush=True
            )
            state = {"model": model.state_dict(), "adam": adam.state_dict()}
            temporary = checkpoint.with_suffix(".tmp")
            torch.save(state | {"step": done, "curve": curve}, temporary)
            temporary.replace(checkpoint)


def save_weights(model: PreTrainedModel, directory: Path) -> None:
    """Write 16-bit weights and a configuration that widens them to float32 when they are loaded."""
    directory.mkdir(parents=True, exist_ok=True)
    state = {k: v.to(torch.float16) for k, v in model.state_dict().items()}
    state = {k: v.contiguous() for k, v in revert_weight_conversion(model, state).items()}
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors").chmod(0o644)
    written = model.config.to_dict() | {
        "architectures": [type(model).__name__],
        "dtype": "float32",
    }
    for name in ("_name_or_path", "transformers_version"):
        written.pop(name, None)
    text = json.dumps(dict(sorted(written.items())), indent=2)
    (directory / "config.json").write_text(text + "\n")


def export_digits() -> None:
    """Write the trained image model with its image recipe and card."""
    state = torch.load(WORK / "digits.pt", weights_only=True)
    model = ViTForImageClassification(digits_config())
    model.load_state_dict(state["model"])
    directory = MODELS / "digits"
    save_weights(model, directory)
    recipe = {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5],
        "image_processor_type": "ViTImageProcessor",
        "image_std": [0.5],
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": {"height": 8, "width": 8},
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(recipe, indent=2) + "\n")
    x, y, held = digits_tensors()
    loaded = ViTForImageClassification.from_pretrained(directory)
    before, after = (accuracy(m, x[held], y[held]) for m in (model, loaded))
    if before != after:
        raise SystemExit(f"16-bit weights change the accuracy: {before} -> {after}")
    rows = "\n".join(f"| {s:,} | {loss:.4f} | {right:.4f} |" for s, loss, right in state["curve"])
    card = DIGITS_CARD.format(
        accuracy=after, curve=rows, parameters=sum(p.numel() for p in model.parameters())
    )
    (directory / "README.md").write_text(card)
    print(f"digits: test accuracy {after:.4f}, step {state['step']}")


def byte_tokenizer() -> Tokenizer:
    """Return byte-level BPE without merges, in which the id of a byte is its value."""
    order = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in set(order)]
    letters = {b: chr(b) for b in order} | {b: chr(256 + i) for i, b in enumerate(rest)}
    vocabulary = {letters[b]: b for b in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def save_byte_tokenizer(directory: Path) -> None:
    """Write the tokenizer and check that it gives bytes."""
    byte_tokenizer().save(str(directory / "tokenizer.json"))
    written = {
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(written, indent=2) + "\n")
    loaded = AutoTokenizer.from_pretrained(directory)
    for text in ("import os\n", "\ttab  space\r\n", "na\u00efve \u4e2d\u6587 \U0001f600\x00\x7f"):
        if loaded(text)["input_ids"] != list(text.encode()):
            raise SystemExit(f"the tokenizer does not give the bytes of {text!r}")


def save_stdlib(full: bool) -> None:
    """Write the language model of the newest checkpoint, finished or not, with its card."""
    state = torch.load(WORK / "stdlib.pt", weights_only=True)
    model = LlamaForCausalLM(stdlib_config())
    model.load_state_dict(state["model"])
    directory = MODELS / "stdlib"
    save_weights(model, directory)
    save_byte_tokenizer(directory)
    loaded = LlamaForCausalLM.from_pretrained(directory)
    test = [p.read_bytes() for p in stdlib_files() if is_test(p)]
    before, after = (bits_per_byte(m, [f[:512] for f in test]) for m in (model, loaded))
    print(f"stdlib: step {state['step']}, bits per byte {before:.5f} -> {after:.5f} in 16 bits")
    if abs(before - after) > 1e-3:
        raise SystemExit("16-bit weights change the bits per byte")
    figure = f"on the first 4 KiB of each file {state['curve'][-1][2]:.4f}"
    if full:
        figure = f"on all {sum(map(len, test)):,} bytes {bits_per_byte(loaded, test):.4f}"
    rows = "\n".join(f"| {s:,} | {a:.4f} | {b:.4f} |" for s, a, b in state["curve"])
    card = STDLIB_CARD.format(
        figure=figure,
        curve=rows,
        step=state["step"],
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        parameters=sum(p.numel() for p in model.parameters()),
    )
    (directory / "README.md").write_text(card)
    print(f"stdlib: {figure} bits per byte")


DIGITS_CARD = """---
license: apache-2.0
pipeline_tag: image-classification
---

# digits

A vision transformer with {parameters:,} parameters that reads 8 x 8 grey images of handwritten
digits: 4 blocks of width 64 over 4 x 4 patches, random start, trained by
`tools/train_zoo.py digits`.

- Data: the digits of scikit-learn (`load_digits`), which are the test part of *Optical Recognition
  of Handwritten Digits* by E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, CC BY 4.0.
- Split: rows whose index within their class ends in 2, 5 or 8 are held out (537), the others
  (1,260) are for training. Images are slightly turned, scaled and shifted while training.
- Test accuracy: {accuracy:.4f}.
- Licence of the weights: Apache-2.0.
- Use: to try sonde on a real model in seconds. It knows nothing but these digits.

| step | training loss (last batch, labels smoothed) | test accuracy |
|---|---|---|
{curve}
"""

STDLIB_CARD = """---
license: apache-2.0
pipeline_tag: text-generation
---

# stdlib

A byte-level causal language model (Llama architecture, {parameters:,} parameters, 7 blocks of width
192, context 256 bytes) of Python source, random start, trained by `tools/train_zoo.py stdlib`.
A token is a byte and its id is the byte's value; there are no special tokens.

- Data: the standard library of Python {python} (PSF licence) without tests, `idlelib`, `lib2to3`
  and `encodings`. A file is held out if a hash of its relative path says so (about one in ten).
- Held-out files, in pieces of 256 bytes without overlap, after {step:,} steps:
  {figure} bits per byte.
- Licence of the weights: Apache-2.0.
- Use: to try sonde on a real language model in seconds. It does not write working programs.

| step | training, bits per byte | test, bits per byte (first 4 KiB of each file) |
|---|---|---|
{curve}
"""


def main() -> None:
    """Parse the command line, then train or export."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=["stdlib", "digits", "export"])
    parser.add_argument("model", nargs="?", choices=["stdlib", "digits"])
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--full", action="store_true", help="measure on every byte of the test files"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.command == "export" and args.model is None:
        parser.error("export: name the model, stdlib or digits")
    if args.command == "stdlib":
        train_stdlib(args.steps or 2000, args.batch, args.seed)
    elif args.command == "digits":
        train_digits(args.steps or DIGITS_STEPS, args.seed)
    elif args.model == "stdlib":
        save_stdlib(args.full)
    else:
        export_digits()


if __name__ == "__main__":
    main()
