"""Everything about a live model that a tap must hand back as it found it."""

import hashlib
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return hooks in order, flags, gradients, random states, attributes, hashes.

    Python's own random state is left out: the shape checks of the tests draw from it.
    """
    config = model.__dict__.get("config")
    return {
        "hooks": [[list(getattr(m, name).items()) for name in HOOKS] for m in model.modules()],
        "training": [m.training for m in model.modules()],
        "attributes": [sorted(m.__dict__) for m in model.modules()],
        "parameters": [
            (n, id(p), p.requires_grad, id(p.grad)) for n, p in model.named_parameters()
        ],
        "values": _digest(model),
        "random": (_hash(torch.get_rng_state().numpy()), _numpy_state()),
        "grad_mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": torch.is_autocast_enabled("cpu"),
        "stance": torch._dynamo.eval_frame._stance.stance,
        "config": None if config is None else str(config.to_dict()),
        "attention": dict(ALL_ATTENTION_FUNCTIONS._local_mapping),
    }


def _digest(model: nn.Module) -> str:
    total = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        total.update(name.encode())
        total.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _hash(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


def _numpy_state() -> str:
    return _hash(np.random.get_state(legacy=False)["state"]["key"])  # noqa: NPY002


def assert_unchanged(before: dict[str, Any], model: nn.Module) -> None:
    """Fail with the name of the first thing that changed."""
    after = snapshot(model)
    for name, value in before.items():
        assert value == after[name], f"{name} changed"
