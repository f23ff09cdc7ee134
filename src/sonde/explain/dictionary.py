"""A dictionary of features: encoder, decoder, and quality of the reconstruction.

Trained by ``SparseAutoencoder``, ``Transcoder`` and ``Crosscoder``, or read from a file: one
safetensors file of ours, or a folder as SAELens writes it.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as as_safetensors
from torch import Tensor

from sonde.core.edit import Edit, EditContext
from sonde.core.errors import InputError, ShapeError, StateError, StoreError, no_file, reason_of
from sonde.core.result import Result
from sonde.core.site import Site
from sonde.explain._codes import FEW, Act, codes_of, ungated
from sonde.files.durable import atomic_write, make_directory

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
ARCHITECTURES = {
    "relu": "standard",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "batchtopk": "jumprelu",
}
"""How SAELens calls the activations that it knows."""
ACTS = {
    "standard": "relu",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "batchtopk": "jumprelu",
    "gated": "jumprelu",
}
"""Activations here by the name of the SAELens architecture."""


FORMAT = "sonde-dictionary/1"


@final
@dataclass(frozen=True, kw_only=True)
class Dictionary(Result):
    """Features of the states at a site: ``z = act(encoder (x - centre) + bias)``.

    They rebuild ``z decoder + offset``, plus ``skip x`` in a skip transcoder. ``value`` is the
    share of the variance that they leave unexplained.

    Attributes
    ----------
    encoder : Float[Tensor, "feature dim"]
    bias : Float[Tensor, "feature"]
    centre : Float[Tensor, "dim"]
    decoder : Float[Tensor, "feature dim_out"]
        A row for each feature, its direction, in the scale of the states; all of one length
        where no unit was scaled down.
    offset : Float[Tensor, "dim_out"]
    threshold : Float[Tensor, "feature"] or None
        What a feature must exceed to be active; one number for all or one for each.
    skip : Float[Tensor, "dim_out dim"] or None
    act : str
        How features are chosen; ``k`` of each row for ``topk`` and ``abstopk``.
    density : Float[Tensor, "feature"] or None
        Share of rows in which each feature is active; None if that is not known.
    widths : tuple of int
        Of the sites whose rows are read together, one after the other; ``scales`` are what their
        rows were multiplied by in training.
    """

    title: ClassVar[str] = "Density of features"
    encoder: Float[Tensor, "feature dim"]
    bias: Float[Tensor, "feature"]
    centre: Float[Tensor, "dim"]
    decoder: Float[Tensor, "feature dim_out"]
    offset: Float[Tensor, "dim_out"]
    threshold: Float[Tensor, "#feature"] | None = None
    skip: Float[Tensor, "dim_out dim"] | None = None
    act: Act = "relu"
    k: int = 0
    density: Float[Tensor, "feature"] | None = None
    widths: tuple[int, ...] = ()
    scales: tuple[float, ...] = ()

    @property
    def n_features(self) -> int:
        """Number of features."""
        return len(self.bias)

    @property
    def l0(self) -> float:
        """Mean number of active features in a row; NaN if densities are unknown."""
        return math.nan if self.density is None else float(self.density.sum())

    @property
    def dead_share(self) -> float:
        """Fraction of features that are active in no row; NaN if densities are unknown."""
        if self.density is None or self.n_features == 0:
            return math.nan
        return float((self.density == 0).double().mean())

    def encode(self, rows: Float[Tensor, "*row dim"]) -> Float[Tensor, "*row feature"]:
        """Return the features of rows, each row by itself.

        Raises
        ------
        ShapeError
            If rows have another width than the dictionary.
        """
        x = rows.reshape(-1, rows.shape[-1])
        dim = self.encoder.shape[1]
        if x.shape[1] != dim:
            raise ShapeError(
                f"Dictionary.encode: expected dim={dim} (as fitted), got dim={x.shape[1]}. Fit a "
                "second dictionary for that site."
            )
        kept = {n: getattr(self, n).to(x) for n in ("encoder", "bias", "centre")}
        pre = (x - kept["centre"]) @ kept["encoder"].T + kept["bias"]
        threshold = None if self.threshold is None else self.threshold.to(x)
        z = codes_of(pre, self.act, self.k, threshold).dense(self.n_features)
        return z.reshape(*rows.shape[:-1], self.n_features)

    def decode(self, z: Float[Tensor, "*row feature"]) -> Float[Tensor, "*row dim_out"]:
        """Return the rows that features decode to, without the skip connection."""
        return z @ self.decoder.to(z) + self.offset.to(z)

    def rebuild(self, rows: Float[Tensor, "*row dim"]) -> Float[Tensor, "*row dim_out"]:
        """Return the rows' reconstructions by the dictionary."""
        decoded = self.decode(self.encode(rows))
        return decoded if self.skip is None else decoded + rows @ self.skip.to(rows).T

    @property
    def shares(self) -> Float[Tensor, "site feature"]:
        """Fraction of each feature's decoder norm that lies at each site.

        Lengths are taken in the scale of each site; a feature of length 0 has a share of NaN.
        """
        parts = self.decoder.split(list(self.widths) or [self.decoder.shape[1]], 1)
        scales = self.scales or (1.0,) * len(parts)
        lengths = torch.stack([p.norm(dim=1) * s for p, s in zip(parts, scales, strict=True)])
        return lengths / lengths.sum(0)

    def edit(
        self, strength: float = 1.0, *, features: Mapping[int, float] | None = None
    ) -> "DictionaryEdit":
        """Return the edit that replaces states by their reconstruction, or sets features.

        Parameters
        ----------
        strength : float, default=1.0
        features : mapping of int to float, optional
            Value of each feature that is set; the others, and what the dictionary does not
            explain, stay as they are.

        Raises
        ------
        InputError
            If there is no such feature, or the dictionary rebuilds another site than it reads.
        """
        if self.encoder.shape[1] != self.decoder.shape[1] or len(self.widths) > 1:
            raise InputError(
                "Dictionary.edit: expected a dictionary that reconstructs the same site that "
                f"it reads, got {self.encoder.shape[1]} units in and {self.decoder.shape[1]} "
                f"out, of {max(1, len(self.widths))} sites."
            )
        chosen = tuple(sorted((features or {}).items()))
        wrong = [i for i, _ in chosen if not 0 <= i < self.n_features]
        if wrong:
            raise InputError(
                f"Dictionary.edit: expected features from 0 to {self.n_features - 1}, got {wrong}."
            )
        return DictionaryEdit(self, None if features is None else chosen, strength)

    def table(self) -> Any:
        """Return a table of the density of each feature."""
        if self.density is None:
            return super().table()
        return replace(self, value=self.density, density=None).table()

    def save(self, path: str | Path, *, site: str = "") -> None:
        """Write one safetensors file, which any safetensors reader opens.

        Raises
        ------
        StoreError
            If the file cannot be written.
        """
        tensors = {n: getattr(self, n) for n in ("encoder", "bias", "centre", "decoder", "offset")}
        more = {n: getattr(self, n) for n in ("threshold", "skip", "density")}
        tensors |= {n: t for n, t in more.items() if t is not None}
        metadata = {
            "format": FORMAT,
            "act": self.act,
            "k": self.k,
            "widths": list(self.widths),
            "scales": list(self.scales),
            "site": site,
            "n": self.n,
            "value": float(self.value) if math.isfinite(float(self.value)) else None,
        }
        plain = {n: t.detach().cpu().contiguous() for n, t in tensors.items()}
        atomic_write(
            Path(path), as_safetensors(plain, {"sonde": json.dumps(metadata, sort_keys=True)})
        )

    def save_saelens(self, folder: str | Path, *, hook_name: str = "") -> None:
        """Write a folder in the layout of SAELens: ``cfg.json`` and ``sae_weights.safetensors``.

        Raises
        ------
        InputError
            If the layout cannot hold the dictionary: signed features, several sites, or ``skip``.
        """
        is_own = self.encoder.shape[1] == self.decoder.shape[1] and len(self.widths) < 2
        if self.act not in ARCHITECTURES or not is_own or self.skip is not None:
            raise InputError(
                f"save_saelens: expected a dictionary of one site without skip, with an activation "
                f"of {', '.join(ARCHITECTURES)}, got {self.act} of {max(1, len(self.widths))} "
                f"sites, from width {self.encoder.shape[1]} to {self.decoder.shape[1]}, "
                f"{'without' if self.skip is None else 'with'} skip. "
                "Save it with save: one safetensors file."
            )
        tensors = {
            "W_enc": self.encoder.T,
            "b_enc": self.bias - self.encoder @ (self.centre - self.offset),
            "W_dec": self.decoder,
            "b_dec": self.offset,
        }
        if self.threshold is not None:
            tensors["threshold"] = self.threshold.expand(self.n_features)
        write_saelens(Path(folder), tensors, self.act, self.k, hook_name)


def load_dictionary(path: str | Path) -> Dictionary:
    """Read a dictionary: a safetensors file of sonde, or a folder in the layout of SAELens.

    Parameters
    ----------
    path : str or Path
        A file that sonde wrote, or a folder in the layout of SAELens.

    Raises
    ------
    StoreError
        If there is no such file.
    StateError
        If the file is no dictionary, is damaged, or is of a kind that is not known here.
    """
    path = Path(path)
    if path.is_dir():
        fields = read_saelens(path)
        check_fields(fields, path)
        return Dictionary(**fields)
    tensors, metadata = read_tensors(path)
    try:
        about = json.loads(metadata.get("sonde", "null"))
        if about is None or about["format"] != FORMAT:
            raise StateError(
                f"load_dictionary: expected {FORMAT}, got another safetensors file: {path}. "
                "For a dictionary of SAELens, give the folder with cfg.json."
            )
        fields: dict[str, Any] = {
            "value": math.nan if about["value"] is None else float(about["value"]),
            "n": int(about["n"]),
            "act": about["act"],
            "k": int(about["k"]),
            "widths": tuple(about["widths"]),
            "scales": tuple(about["scales"]),
            "conventions": {"site": about["site"], "value": "share of variance unexplained"},
            **tensors,
        }
        check_fields(fields, path)
        return Dictionary(**fields)
    except KeyError as error:
        raise StateError(
            f"load_dictionary: {path} is damaged: its header has no {error}. Save the dictionary "
            "again."
        ) from error
    except (TypeError, ValueError) as error:
        raise StateError(
            f"load_dictionary: {path} is damaged: {error}. Save the dictionary again."
        ) from error


@final
@dataclass(frozen=True, eq=False)
class DictionaryEdit(Edit):
    """Replace states by their reconstruction, or set some features of a dictionary.

    If features are given, only their part changes, ``x + (value - z) d``: the other features, and
    the part of the state that the dictionary does not explain, stay as they are.

    Range        the shape and type of the activation.
    Cost         one reading of the dictionary.
    Assumes      a dictionary that was fitted at this site.

    Parameters
    ----------
    dictionary : Dictionary
        The dictionary whose features are used.
    features : tuple of (int, float), optional
        Features and what they are set to; by default the whole state is rebuilt.
    strength : float, default=1.0
        Weight of the change.
    """

    dictionary: Dictionary
    features: tuple[tuple[int, float], ...] | None = None
    strength: float = 1.0

    def apply(self, x: Tensor, site: Site, context: EditContext) -> Tensor:
        """Return the changed activation."""
        if self.strength == 0.0:
            return x
        if self.features is None:
            return torch.lerp(x, self.dictionary.rebuild(x).to(x), self.strength)
        index = [i for i, _ in self.features]
        values = x.new_tensor([v for _, v in self.features])
        gap = values - self.dictionary.encode(x)[..., index]
        return x + self.strength * (gap @ self.dictionary.decoder[index].to(x))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the header of a safetensors file.

    Raises
    ------
    StoreError
        If the file is missing.
    StateError
        If the file is no safetensors file.
    """
    if not path.is_file():
        raise StoreError(f"load_dictionary: {no_file(path)}.")
    try:
        with safe_open(path, framework="pt") as file:
            return {n: file.get_tensor(n) for n in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise StateError(f"load_dictionary: {path} is not a safetensors file: {error}.") from error


def write_saelens(
    folder: Path, tensors: dict[str, Tensor], act: str, k: int, hook_name: str
) -> None:
    """Write ``cfg.json`` and ``sae_weights.safetensors``."""
    n, dim = tensors["W_dec"].shape
    config: dict[str, Any] = {
        "architecture": ARCHITECTURES[act],
        "d_in": dim,
        "d_sae": n,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"hook_name": hook_name},
    }
    if act == "topk":
        config |= {"k": k, "rescale_acts_by_decoder_norm": False}
    make_directory(folder)
    plain = {n: t.detach().cpu().float().contiguous() for n, t in tensors.items()}
    atomic_write(folder / WEIGHTS, as_safetensors(plain))
    atomic_write(folder / CONFIG, json.dumps(config, indent=1).encode())


def read_saelens(folder: Path) -> dict[str, Any]:
    """Return the fields of the dictionary in a folder.

    Raises
    ------
    StoreError
        If the folder, its ``cfg.json`` or its weights are missing.
    StateError
        If the dictionary is of a kind that is not known here.
    """
    if not (folder / CONFIG).is_file():
        raise StoreError(f"load_dictionary: no {CONFIG} in {folder}.")
    try:
        config = dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise StateError(
            f"load_dictionary: {folder / CONFIG} is damaged: {reason_of(error)}."
        ) from None
    tensors, _ = read_tensors(folder / WEIGHTS)
    kind = config.get("architecture", "standard")
    # Older files name topk by its activation function.
    if kind == "standard" and config.get("activation_fn_str", "relu") == "topk":
        kind = "topk"
    scaled = config.get("normalize_activations", "none") not in ("none", None)
    if kind not in ACTS or scaled or config.get("reshape_activations", "none") != "none":
        raise StateError(
            f"load_dictionary: expected a folder of SAELens with architecture among "
            f"{', '.join(ACTS)}, activations that are neither normalised nor reshaped, got {kind}, "
            f"{config.get('normalize_activations')} and {config.get('reshape_activations')} in "
            f"{folder}. Fold the scale into the weights there first."
        )
    encoder, decoder = tensors["W_enc"].T.float(), tensors["W_dec"].float()
    offset, threshold = tensors["b_dec"].float(), tensors.get("threshold")
    if kind == "gated":
        gates = (tensors[n].float() for n in ("b_gate", "r_mag", "b_mag"))
        encoder, bias, threshold = ungated(encoder, *gates)
    else:
        bias = tensors["b_enc"].float()
    length = decoder.norm(dim=1).clamp(min=1e-12)
    if kind == "topk" and config.get("rescale_acts_by_decoder_norm", False):
        # Features are then chosen, and told, as if rows of the decoder had unit length.
        encoder, bias, decoder = encoder * length[:, None], bias * length, decoder / length[:, None]
    if "log_threshold" in tensors:
        threshold = tensors["log_threshold"].exp()
    about = config.get("metadata", config)
    return {
        "encoder": encoder,
        "bias": bias,
        "centre": offset if config.get("apply_b_dec_to_input", True) else torch.zeros_like(offset),
        "decoder": decoder,
        "offset": offset,
        "threshold": None if threshold is None else threshold.float().relu(),
        "act": ACTS[kind],
        "k": int(config.get("k") or config.get("activation_fn_kwargs", {}).get("k", 0)),
        "conventions": {
            "site": "",
            "hook_name": about.get("hook_name"),
            "model": about.get("model_name"),
        },
    }


def check_fields(fields: dict[str, Any], path: Path) -> None:
    """Raise if the tensors do not match one another, or do not match the activation.

    Raises
    ------
    StateError
        With the shapes.
    """
    encoder, decoder, act = fields["encoder"], fields["decoder"], fields["act"]
    fits = (decoder.shape, fields["bias"].shape, fields["centre"].shape) == (
        (len(encoder), len(fields["offset"])),
        encoder.shape[:1],
        encoder.shape[1:],
    )
    has_threshold = fields.get("threshold") is not None
    has_bar = act == "batchtopk" or has_threshold == (act == "jumprelu")
    if not (fits and has_bar) or (act in FEW and fields["k"] < 1):
        raise StateError(
            f"load_dictionary: the shapes of the tensors in {path} contradict each other: "
            f"encoder {tuple(encoder.shape)}, decoder {tuple(decoder.shape)}, {act}, "
            f"k={fields['k']}."
        )
