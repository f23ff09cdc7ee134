"""Identity of a model: hashes of its weights and of its configuration."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sonde.core.repacking import in_own_form
from sonde.tap.hooks.names import ModuleNames, own_class
from sonde.tap.hooks.sharding import release_gathered
from sonde.tap.model.tensor_bytes import is_plain, kind_of, on_host, pieces, words

SAMPLES = 64
ARCHITECTURES = "architectures"
UNHASHED = frozenset(
    {
        "_name_or_path",
        "name_or_path",
        "torch_dtype",
        "dtype",
        "transformers_version",
        "_attn_implementation",
        "_attn_implementation_internal",
        "attn_implementation",
    }
)


def fingerprint(module: nn.Module, *, full: bool = False) -> str:
    """Return a hash of a model's weights and persistent buffers.

    By default it covers names, shapes, types, 64 evenly spaced values of each tensor and the xor of
    all its words. Any single change is seen. A permutation within a tensor that spares the samples
    is not seen, nor are two equal changes. ``full`` hashes every byte.

    Parameters
    ----------
    module : nn.Module
        Module whose weights are hashed.
    full : bool, default=False
        Whether every byte is hashed, in place of samples and the xor of all words.

    Examples
    --------
    >>> layer = nn.Linear(3, 2)
    >>> fingerprint(layer) == fingerprint(layer)
    True
    """
    in_own_form(module)
    release_gathered(module)
    digest = hashlib.sha256()
    for name, tensor in sorted(_tensors(module), key=lambda pair: pair[0]):
        if is_lazy(tensor):
            digest.update(f"{name}|lazy\n".encode())
            continue
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name}|{tuple(tensor.shape)}|{dtype}\n".encode())
        if tensor.is_meta or tensor.numel() == 0:
            continue
        tensor = on_host(tensor)
        if is_plain(tensor):
            _add(digest, tensor, full)
            continue
        digest.update(f"{kind_of(tensor)}\n".encode())
        for inner, part in pieces(tensor):
            digest.update(f"{inner}|{tuple(part.shape)}|{part.dtype}\n".encode())
            if part.numel() and not part.is_meta:
                _add(digest, part, full)
    return digest.hexdigest()


def _add(digest: Any, x: Tensor, full: bool) -> None:
    """Add a plain tensor to a hash: all its bytes, or samples and the xor of all words."""
    plain = torch.view_as_real(x) if x.is_complex() and x.dtype != torch.complex32 else x
    flat = plain.detach().contiguous().reshape(-1)
    digest.update(_bytes(flat if full else _samples(flat)))
    if not full:
        digest.update(_xor(flat).to_bytes(8, "little", signed=False))


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield weights and persistent buffers by name, tied ones under each name."""
    for path, part in ModuleNames(module).modules.items():
        prefix = f"{path}." if path else ""
        held: dict[str, Tensor | None] = {**part._parameters, **part._buffers}
        offloaded = _offloaded(part)
        for name, tensor in held.items():
            if tensor is not None and name not in part._non_persistent_buffers_set:
                yield prefix + name, offloaded.get(name, tensor)


def _offloaded(part: nn.Module) -> dict[str, Tensor]:
    """Return the real weights of a module whose parameters are offloaded to the meta device."""
    hook = part.__dict__.get("_hf_hook")
    weights = None if hook is None else hook.__dict__.get("weights_map")
    if weights is None:
        return {}
    names = [n for n, t in {**part._parameters, **part._buffers}.items() if t is not None]
    return {n: weights[n] for n in names if part_is_meta(part, n)}


def part_is_meta(part: nn.Module, name: str) -> bool:
    """Return whether a parameter or buffer has no values at present."""
    tensor = part._parameters.get(name)
    tensor = part._buffers.get(name) if tensor is None else tensor
    return tensor is not None and tensor.device.type == "meta"


def _samples(flat: Tensor) -> Tensor:
    index = torch.linspace(0, len(flat) - 1, min(SAMPLES, len(flat)), dtype=torch.float64)
    return flat[index.round().long().to(flat.device)]


def _bytes(flat: Tensor) -> bytes:
    return words(flat).cpu().numpy().tobytes()


def _xor(flat: Tensor) -> int:
    """Return the xor of all words; of all bytes where torch has no xor of the type."""
    try:
        hashed = torch.hash_tensor(flat)
    except NotImplementedError:
        hashed = torch.hash_tensor(words(flat))
    return int(hashed.item()) & (2**64 - 1)


def config_hash(config: Any, module: nn.Module | None = None) -> str:
    """Return a hash of a configuration without its name, type, versions and attention kernel.

    ``architectures`` is replaced by the class of ``module``, as in saving the model.
    An object without ``to_dict`` hashes as empty.

    Parameters
    ----------
    config : object
        Configuration of a model.
    module : Module, optional
        Module that the configuration belongs to, if it is at hand.
    """
    values = _values(config)
    if module is not None and ARCHITECTURES in values:
        values[ARCHITECTURES] = [own_class(ModuleNames(module).modules[""]).__name__]
    return _hash(values)


def known_config_hash(config: Any, module: nn.Module, known: str | None) -> str:
    """Return a configuration's hash, or ``known`` if an earlier version hashed it so.

    Earlier versions took ``architectures`` as recorded: none before the model was saved.

    Parameters
    ----------
    config : object
        Configuration of a model.
    module : Module
        Module that the configuration belongs to.
    known : str | None
        Hash that a file contains; None if it contains none.
    """
    values = _values(config)
    before = [_hash(values | {ARCHITECTURES: a}) for a in (values.get(ARCHITECTURES), None)]
    return known if known in before else config_hash(config, module)


def _values(config: Any) -> dict[str, Any]:
    to_dict = getattr(config, "to_dict", None)
    return _clean(to_dict()) if callable(to_dict) else {}


def _hash(values: dict[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _clean(v) for k, v in value.items() if k not in UNHASHED}
    return [_clean(v) for v in value] if isinstance(value, list | tuple) else value
