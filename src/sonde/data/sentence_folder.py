"""Folders of sentence-transformers: the stages after the transformer."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from torch import Tensor, nn

from sonde.core.errors import InputError, SondeWarning
from sonde.data._checkpoints import LIVE, STAGES, json_object, stages_of
from sonde.data.processors import is_tokenizer
from sonde.data.sentence_encoder import (
    EMBEDDING,
    Pooling,
    Projection,
    SentenceEncoder,
    UnitLength,
)

Tensors = Callable[[], Mapping[str, Tensor]]
_SWITCHES: Final = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@final
@dataclass(frozen=True)
class SentenceFolder:
    """The stages of a folder of sentence-transformers.

    Parameters
    ----------
    path : Path
    transformer : Path
        The folder with the weights of the transformer: often ``path`` itself.
    pooling : Path
    after : tuple of (str, Path)
        Class and folder of each stage after the pooling.
    """

    path: Path
    transformer: Path
    pooling: Path
    after: tuple[tuple[str, Path], ...]

    @classmethod
    def find(cls, path: Path) -> "SentenceFolder | None":
        """Return the stages of a folder, or None if it lists none.

        Raises
        ------
        InputError
            If there are stages that are not read here.
        """
        listed = stages_of(path)
        if not listed:
            return None
        check_kinds([kind for kind, _ in listed], f"{path / STAGES}")
        return cls(path, listed[0][1], listed[1][1], tuple(listed[2:]))

    def encoder(self, transformer: nn.Module) -> SentenceEncoder:
        """Return the transformer with the later stages, on the device of its last weights."""
        stages = named_stages(
            (kind, _written(folder), lambda at=folder: _stored(at), str(folder))
            for kind, folder in self.after
        )
        if (last := [*transformer.parameters()][-1:]) and last[0].is_floating_point():
            for stage in stages.values():
                stage.to(last[0].device, last[0].dtype)
        file = self.pooling / "config.json"
        modes = pooling_modes(json_object(file), str(file))
        return SentenceEncoder(transformer, Pooling(modes), stages).eval()

    def apply_to(self, tokenizer: Any) -> None:
        """Apply the folder's settings to a tokenizer: lower case and maximal length.

        A prompt that the library would put before each text is told of.
        """
        config = dict[str, Any]()
        for file in sorted(self.transformer.glob("sentence_*_config.json")):
            config |= json_object(file)
        if not is_tokenizer(tokenizer):
            return
        if isinstance(config.get("max_seq_length"), int):
            tokenizer.model_max_length = config["max_seq_length"]
        if config.get("do_lower_case"):
            lower(tokenizer)
        file = self.path / "config_sentence_transformers.json"
        config = json_object(file) if file.is_file() else {}
        prompt = (config.get("prompts") or {}).get(config.get("default_prompt_name"))
        tell_prompt(prompt, f"{self.path} ({file.name})")


def check_kinds(kinds: Sequence[str], where: str) -> None:
    """Raise unless the stages are known and begin with a transformer and its pooling.

    Raises
    ------
    InputError
        If there are stages that are not read here.
    """
    strange = [k for k in kinds[2:] if k not in _STAGES]
    if [*kinds[:2]] != ["Transformer", "Pooling"] or strange:
        raise InputError(
            f"load: {where} lists the stages {', '.join(kinds)}: expected Transformer, "
            f"Pooling, then any of {', '.join(_STAGES)}. {LIVE}"
        )


def pooling_modes(written: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Return the pooling modes in a configuration."""
    if written.get("include_prompt", True) is False:
        warnings.warn(
            f"load: {where} leaves the tokens of a prompt out of the pooling. sonde adds no "
            "prompt to texts and does not recognise prompts in them, so all tokens are pooled.",
            SondeWarning,
            stacklevel=2,
        )
    modes = written.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _SWITCHES.items() if written.get(key)] or ["mean"]
    return (modes,) if isinstance(modes, str) else tuple(modes)


def named_stages(
    stages: Iterable[tuple[str, Mapping[str, Any], Callable[[], Mapping[str, Tensor]], str]],
) -> dict[str, nn.Module]:
    """Return the stages after the pooling by name.

    Parameters
    ----------
    stages : iterable of (str, mapping, callable, str)
        Of each stage its class, its configuration, what returns its tensors, and where it is.
    """
    by_name = dict[str, nn.Module]()
    for kind, written, stored, where in stages:
        stage, name = _STAGES[kind](written, stored, where), _NAMES[kind]
        n = sum(earlier.partition("_")[0] == name for earlier in by_name)
        if stage is not None:
            by_name[f"{name}_{n + 1}" if n else name] = stage
    return by_name


def tell_prompt(prompt: str | None, where: str) -> None:
    """Warn if sentence-transformers would add a prompt before each text."""
    if prompt:
        warnings.warn(
            f"load: {where} puts the prompt {prompt!r} before each text; sonde reads texts "
            "unchanged. Write the prompt into your texts to get the library's vectors.",
            SondeWarning,
            stacklevel=2,
        )


def _dense(written: Mapping[str, Any], tensors: Tensors, where: str) -> nn.Module:
    for key in ("module_input_name", "module_output_name"):
        if (written.get(key) or EMBEDDING) != EMBEDDING:
            raise InputError(
                f"load: {where} is applied to {written[key]!r}: expected {EMBEDDING!r}, the "
                f"vector of a text. {LIVE}"
            )
    adds, stored = bool(written.get("use_residual", False)), tensors()
    activation = _activation(written.get("activation_function", "Tanh"), where)
    needed = {"linear.weight", *(["linear.bias"] if written.get("bias", True) else [])}
    if adds and written["in_features"] != written["out_features"]:
        needed.add("residual.weight")
    if needed != stored.keys():
        raise InputError(
            f"load: expected the tensors {', '.join(sorted(needed))} in {where}, got "
            f"{', '.join(sorted(stored))}. Save the model again with sentence-transformers."
        )
    return Projection(stored, activation, adds)


def _activation(name: str, where: str) -> nn.Module:
    """Return the torch activation class that a folder names, by any path."""
    kind = getattr(nn, str(name).rpartition(".")[2], None)
    from_torch = "." not in str(name) or str(name).startswith("torch.nn.")
    if not from_torch or not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise InputError(
            f"load: {where} names the activation {name!r}: expected a class of torch.nn. {LIVE}"
        )
    return kind()


def _layer_norm(written: Mapping[str, Any], tensors: Tensors, where: str) -> nn.Module:
    stored = tensors()
    norm = nn.LayerNorm(len(stored["norm.weight"]))
    norm.load_state_dict({name.removeprefix("norm."): x for name, x in stored.items()})
    return norm


def _unit_length(written: Mapping[str, Any], tensors: Tensors, where: str) -> nn.Module:
    for key in ("module_input_name", "module_output_name"):
        if (written.get(key) or EMBEDDING) != EMBEDDING:
            raise InputError(f"load: {where} is applied to {written[key]!r}. {LIVE}")
    return UnitLength()


def _written(folder: Path) -> Mapping[str, Any]:
    """Return the configuration of a stage, empty if it is missing."""
    file = folder / "config.json"
    return json_object(file) if file.is_file() else {}


def _stored(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a stage."""
    from safetensors.torch import load_file

    file = folder / "model.safetensors"
    if not file.is_file():
        raise InputError(
            f"load: {folder} has no model.safetensors. Load the model with sentence-transformers "
            "and save it again: it writes safetensors."
        )
    return load_file(file)


def lower(tokenizer: Any) -> None:
    """Let a tokenizer of transformers convert texts to lower case first."""
    if not getattr(tokenizer, "is_fast", False):
        tokenizer.do_lower_case = True
        return
    from tokenizers.normalizers import Lowercase, Sequence

    backend = tokenizer.backend_tokenizer
    old = backend.normalizer
    backend.normalizer = Sequence([Lowercase()] if old is None else [Lowercase(), old])


_STAGES: Final[dict[str, Callable[[Mapping[str, Any], Tensors, str], nn.Module | None]]] = {
    "Dense": _dense,
    "LayerNorm": _layer_norm,
    "Normalize": _unit_length,
    "Dropout": lambda *_: None,
}
_NAMES: Final = {
    "Dense": "dense",
    "LayerNorm": "norm",
    "Normalize": "normalize",
    "Dropout": "dropout",
}
