"""Train the two shipped models anew: ``digits`` (images) and ``stdlib`` (bytes of Python source).

Seeded and resumable: a checkpoint is written every few minutes under ``train/`` and picked up by the
next start. The result is a Hugging Face directory under ``src/sonde/data/models/`` with 16-bit
safetensors, a model card with the training curve, and the figures that the card quotes.

    python tools/train_zoo.py stdlib --steps 6000
    python tools/train_zoo.py digits
"""

import argparse
import json
import math
import os
import sys
import sysconfig
import time
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

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


def train_stdlib(steps: int, batch: int, seed: int, stop_after: int | None = None) -> None:
    """Train, checkpoint, and save the byte-level language model."""
    torch.manual_seed(seed)
    files = stdlib_files()
    train = [p.read_bytes() for p in files if not is_test(p)]
    test = [p.read_bytes() for p in files if is_test(p)]
    corpus = torch.from_numpy(np.frombuffer(b"\n".join(train), dtype=np.uint8).copy())
    print(f"train {corpus.numel():,} bytes in {len(train)} files; test {sum(map(len, test)):,}")
    model = LlamaForCausalLM(stdlib_config())
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    muon, adam = stdlib_optimizers(model)
    rates = [[g["lr"] for g in o.param_groups] for o in (muon, adam)]
    WORK.mkdir(exist_ok=True)
    checkpoint = WORK / "stdlib.pt"
    first, curve = 0, []
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        muon.load_state_dict(state["muon"])
        adam.load_state_dict(state["adam"])
        first, curve = state["step"], state["curve"]
        print(f"resumed at step {first}")
    model.train()
    began, window = time.time(), []
    for step in range(first, steps):
        draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
        start = torch.randint(0, corpus.numel() - CONTEXT, (batch,), generator=draw)
        ids = torch.stack([corpus[s : s + CONTEXT] for s in start]).long()
        factor = schedule(step, steps)
        for optimizer, base in zip((muon, adam), rates, strict=True):
            for group, rate in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = rate * factor
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in (muon, adam):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        window.append(loss.item())
        done = step + 1
        if done % 50 == 0:
            mean = sum(window[-50:]) / len(window[-50:]) / math.log(2)
            rate = (time.time() - began) / (done - first)
            print(f"step {done} train {mean:.4f} bits/byte {rate:.2f} s/step", flush=True)
        if done % 250 == 0 or done == steps:
            value = bits_per_byte(model, [f[:4096] for f in test])
            curve.append(
                [done, round(sum(window[-250:]) / len(window[-250:]) / math.log(2), 4), round(value, 4)]
            )
            print(f"step {done} test(first 4 KiB of each file) {value:.4f} bits/byte", flush=True)
            temporary = checkpoint.with_suffix(".tmp")
            torch.save(
                {
                    "model": model.state_dict(),
                    "muon": muon.state_dict(),
                    "adam": adam.state_dict(),
                    "step": done,
                    "curve": curve,
                },
                temporary,
            )
            os.replace(temporary, checkpoint)
    final = bits_per_byte(model.to(torch.bfloat16).float(), test)
    print(f"final {final:.4f} bits per byte over all test bytes")
    (WORK / "stdlib.json").write_text(json.dumps({"bits_per_byte": final, "curve": curve}))


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=["stdlib", "digits"])
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.model == "stdlib":
        train_stdlib(args.steps, args.batch, args.seed)
    else:
        sys.exit("digits: not written yet")


if __name__ == "__main__":
    main()
