"""Layers that look randomly initialised, by distribution, spectrum and biases.

The distribution of weights alone proves nothing. A layer counts only if four things hold. Its
entries fit a usual initialiser. No direction stands out of the spectrum of random entries (training
adds a few strong directions). Its input passes through it as strongly as through random weights. It
passes on no more from one neighbour to the next than random weights do, unlike layers that learned
together.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import ndtr
from scipy.stats import chi2, gamma, kstwo
from torch import Tensor, nn

from sonde.core.site import Site
from sonde.findings.evidence.record import Evidence
from sonde.findings.self_check import chosen_examples
from sonde.tap import LiveStream
from sonde.tap.model.seeding import untouched
from sonde.tap.model.watch import watch
from sonde.tap.streams.small_batches import small_batches

LEAST, MOST, ROWS = 512, 8_192, 16
STEPS = 24
LEVEL, SMALL = 0.05, 0.2

Matrix = Float[Tensor, "dim2 dim"]


@dataclass(frozen=True)
class Fresh:
    """A layer whose weights look randomly initialised, with the test results.

    Parameters
    ----------
    path, law : str
        The layer, and the initialiser whose entries it has.
    edge : float
        Largest singular value over the edge of the spectrum of random entries.
    bias : str
        ``zero`` or ``drawn``, as an initialiser leaves the bias; empty without a bias.
    module : str, default=""
        The module of the weight, if ``path`` names one of its several weights.
    """

    path: str
    law: str
    edge: float
    bias: str
    module: str = ""


@dataclass(frozen=True)
class Size:
    """Shape of a layer's weight, and the root mean square of its entries."""

    shape: tuple[int, ...]
    rms: float


@dataclass(frozen=True)
class FreshLayers:
    """Layers that look untrained, and the number of layers tested.

    Parameters
    ----------
    fresh : tuple of Fresh
        In order of execution.
    sizes : mapping of path to Size
        All layers that were looked at.
    tables : tuple of Fresh
        Embeddings that look untrained, of a spread small enough for training to change it.
    norms : tuple of str
        Norms whose weight is exactly 1 and whose bias is exactly 0, if most norms have moved.
    n_norms : int
        Norms with weights that ran.
    inner : tuple of Fresh
        Matrices of recurrent layers and of joined attention layers that look untrained.
    n_inner : int
        All such matrices that were looked at.
    zeros : tuple of str
        Embeddings of several rows that ran and hold nothing but zeros.
    gains : mapping of path to Size
        Weights of the norms that ran; each counts for one unit, so that widths are left out.
    """

    fresh: tuple[Fresh, ...] = ()
    sizes: Mapping[str, Size] = field(default_factory=dict[str, Size])
    tables: tuple[Fresh, ...] = ()
    norms: tuple[str, ...] = ()
    n_norms: int = 0
    inner: tuple[Fresh, ...] = ()
    n_inner: int = 0
    zeros: tuple[str, ...] = ()
    gains: Mapping[str, Size] = field(default_factory=dict[str, Size])

    @property
    def n(self) -> int:
        """Number of layers and matrices that were tested."""
        return len(self.sizes) + self.n_inner

    @property
    def share(self) -> float:
        """Fraction of the layers that look untrained."""
        return (len(self.fresh) + len(self.inner)) / max(self.n, 1)


def find_fresh_layers(stream: LiveStream, evidence: Evidence) -> FreshLayers:
    """Return the layers that look untrained, as a part of the evidence."""
    return fresh_layers(stream, evidence.data.seed)


def untrained_share(evidence: Evidence) -> float:
    """Return the fraction of the layers that look untrained; 0 if no model is known."""
    layers = evidence.get(find_fresh_layers)
    return 0.0 if layers is None else layers.share


def fresh_layers(stream: LiveStream, seed: int) -> FreshLayers:
    """Return the layers of a model that look untrained; runs a few rows if necessary."""
    candidates: list[tuple[Fresh, Matrix, float]] = []
    looked = list(_layers(stream))
    for i, (path, weight, bias) in enumerate(looked):
        bias_words = _bias(bias, weight.shape[1])
        law = None if bias_words is None else _law(weight)
        if law is None or bias_words is None:
            continue
        edge, p = spectrum_edge(weight, law.spread)
        before, after = ([w for _, w, _ in part] for part in (looked[:i][-1:], looked[i + 1 :][:1]))
        nearness = neighbours(weight, before, after)
        if _combined([law.p, p, *_evenness(weight, law), *nearness]) > LEVEL:
            candidates.append((Fresh(path, law.words, edge, bias_words), weight, law.spread))
    gains = _gains(stream, seed, {f.path: (w, s) for f, w, s in candidates})
    fresh = tuple(
        f for f, w, _ in candidates if abs(gains.get(f.path, 1.0) - 1) < 4 * math.sqrt(2 / len(w))
    )
    sizes = {
        path: Size(tuple(w.shape), float(w.float().square().mean().sqrt())) for path, w, _ in looked
    }
    inner = list(_inner_weights(stream))
    return FreshLayers(
        fresh,
        sizes,
        tuple(_fresh_tables(stream)),
        *_fresh_norms(stream),
        inner=tuple(one for weight in inner for one in _fresh_inner(*weight)),
        n_inner=len(inner),
        zeros=tuple(_zero_tables(stream)),
        gains=dict(_norm_gains(stream)),
    )


def _norm_gains(stream: LiveStream) -> Iterator[tuple[str, Size]]:
    for name, module in stream.probe.names.modules.items():
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        if "Norm" not in type(module).__name__ or not stream.probe.calls(name) or weight is None:
            continue
        if not weight.is_meta and weight.is_floating_point():
            yield name, Size((), float(weight.detach().float().square().mean().sqrt()))


def _inner_weights(stream: LiveStream) -> Iterator[tuple[str, str, Matrix, float]]:
    """Yield matrices of recurrent and attention modules that ran: module, name, bound.

    Torch draws the weights of a recurrent layer by its width, not by that of its inputs.
    """
    for path, module in stream.probe.names.modules.items():
        if not stream.probe.calls(path):
            continue
        held = dict(module.named_parameters(recurse=False))
        if isinstance(module, nn.RNNBase):
            bound = module.hidden_size**-0.5
            names = [n for n in held if n.startswith("weight_")]
        elif isinstance(module, nn.MultiheadAttention):
            bound = 0.0
            names = [n for n in held if n.startswith("in_proj_weight")]
        else:
            continue
        for name in names:
            weight = held[name].detach()
            large = not weight.is_meta and weight.numel() >= LEAST and min(weight.shape) > 1
            if large and weight.is_floating_point():
                yield path, name, weight, bound


def _fresh_inner(path: str, name: str, weight: Matrix, bound: float) -> Iterator[Fresh]:
    """Yield the matrix if its entries, spectrum and norms look like random weights.

    Torch draws these matrices from uniform laws. Normal entries prove nothing: many small updates
    make them too.
    """
    law = _law(weight, bound)
    if law is None or "uniform" not in law.words:
        return
    edge, p = spectrum_edge(weight, law.spread)
    if _combined([law.p, p, *_evenness(weight, law)]) > LEVEL:
        yield Fresh(f"{path}.{name}" if path else name, law.words, edge, "", path)


def _zero_tables(stream: LiveStream) -> Iterator[str]:
    """Yield embeddings that ran, have several rows, and are zero everywhere."""
    for name, module in stream.probe.names.modules.items():
        if isinstance(module, nn.Embedding) and stream.probe.calls(name) > 0:
            weight = module.weight.detach()
            large = not weight.is_meta and weight.numel() >= LEAST and min(weight.shape) > 1
            if large and not bool(weight.any()):
                yield name


def _fresh_norms(stream: LiveStream) -> tuple[tuple[str, ...], int]:
    """Return norms at initial values while most norms changed, and the number of norms."""
    still: list[str] = []
    n = 0
    for name, module in stream.probe.names.modules.items():
        held = dict(module.named_parameters(recurse=False))
        weight, bias = held.get("weight"), held.get("bias")
        if "Norm" not in type(module).__name__ or not stream.probe.calls(name) or weight is None:
            continue
        n += 1
        if bool((weight == 1).all()) and (bias is None or bool((bias == 0).all())):
            still.append(name)
    return (tuple(still) if 0 < len(still) < n / 2 else ()), n


def _fresh_tables(stream: LiveStream) -> Iterator[Fresh]:
    """Yield embeddings that ran and hold Gaussian numbers of one small standard deviation.

    Embeddings of spread 1, as torch draws them, are left out: training hardly changes them.
    """
    for name, module in stream.probe.names.modules.items():
        if not (isinstance(module, nn.Embedding) and stream.probe.calls(name) > 0):
            continue
        weight = module.weight.detach()
        if weight.is_meta or weight.numel() < LEAST or min(weight.shape) < 2:
            continue
        spread = float(weight.float().std())
        if not 0 < spread < SMALL:
            continue
        entries = _some(weight)
        p = _fit_p(_distance(entries, ndtr(entries / spread)), len(entries))
        fits = _Law(f"normal, {spread:.2g}", spread, 3.0, p)
        edge, p = spectrum_edge(weight, spread)
        if _combined([fits.p, p, *_evenness(weight, fits)]) > LEVEL:
            yield Fresh(name, fits.words, edge, "")


def _combined(p: Sequence[float]) -> float:
    """Combine several p-values by Fisher's method."""
    return float(chi2.sf(-2 * sum(math.log(max(one, 1e-300)) for one in p), 2 * len(p)))


def _layers(stream: LiveStream) -> Iterator[tuple[str, Matrix, Tensor | None]]:
    """Yield the linear and convolutional layers that ran: name, (output, input) matrix and bias."""
    names = stream.probe.names.modules
    ran = [n for n in names if stream.probe.calls(n) > 0]
    for name in sorted(ran, key=lambda n: stream.probe.order(n, 0, "out")):
        module = names[name]
        is_turned = type(module).__name__ == "Conv1D"  # of transformers: input by output
        if not (is_turned or isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)):
            continue
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        if weight is None or weight.is_meta or not weight.numel() >= LEAST:
            continue
        matrix = weight.detach().T if is_turned else weight.detach().flatten(1)
        if matrix.is_floating_point() and min(matrix.shape) > 1:
            bias = dict(module.named_parameters(recurse=False)).get("bias")
            yield name, matrix, None if bias is None else bias.detach()


@dataclass(frozen=True)
class _Law:
    """An initialiser, the standard deviation and excess kurtosis of its entries, and the fit."""

    words: str
    spread: float
    kurtosis: float
    p: float


def _some(weight: Matrix) -> np.ndarray:
    """Return at most ``MOST`` entries, evenly spaced, in ascending order."""
    flat = weight.flatten()
    return np.sort(flat[:: max(1, len(flat) // MOST)][:MOST].double().cpu().numpy())


def _distance(ordered: np.ndarray, chance: np.ndarray) -> float:
    """Return the Kolmogorov-Smirnov distance between sorted entries and a distribution.

    Parameters
    ----------
    ordered, chance : array (entry,)
        The entries, and the law's distribution function at each.
    """
    n = len(ordered)
    above, below = np.arange(1.0, n + 1) / n - chance, chance - np.arange(0.0, n) / n
    return float(max(above.max(), below.max()))


def _fit_p(distance: float, n: int) -> float:
    """Return the p-value of a Kolmogorov-Smirnov distance for ``n`` samples."""
    return float(np.clip(kstwo.sf(distance, n), 0.0, 1.0))


def _uniform(x: np.ndarray, bound: float) -> np.ndarray:
    """Return the uniform distribution function on [-bound, bound]."""
    return np.clip((x + bound) / (2 * bound), 0.0, 1.0)


def _law(weight: Matrix, own: float = 0.0) -> _Law | None:
    """Return the usual initialiser that fits the entries best, or None if none fits.

    Parameters
    ----------
    weight : Matrix
    own : float, default=0.0
        Bound of torch's own uniform law, if it does not follow from the number of columns.
    """
    rows, columns = weight.shape
    entries = _some(weight)
    bounds = {
        "torch's own, uniform": own or columns**-0.5,
        "Glorot's, uniform": (6 / (rows + columns)) ** 0.5,
        "He's, uniform": (6 / columns) ** 0.5,
        "LeCun's, uniform": (3 / columns) ** 0.5,
    }
    spreads = {
        "normal, 0.02": 0.02,
        "He's, normal": (2 / columns) ** 0.5,
        "He's of outputs, normal": (2 / rows) ** 0.5,
        "LeCun's, normal": columns**-0.5,
        "Glorot's, normal": (2 / (rows + columns)) ** 0.5,
        "normal, 0.01": 0.01,
    }
    top = abs(entries[[0, -1]]).max()
    laws = [
        (_distance(entries, _uniform(entries, bound)), words, bound / 3**0.5, 1.8)
        for words, bound in bounds.items()
        if top <= bound * (1 + 1e-3)
    ]
    laws += [
        (_distance(entries, ndtr(entries / spread)), words, spread, 3.0)
        for words, spread in spreads.items()
    ]
    distance, words, spread, kurtosis = min(laws, key=lambda law: law[0])
    p = _fit_p(distance, len(entries))
    return _Law(words, spread, kurtosis, p) if p > 1e-3 else None


def _evenness(weight: Matrix, law: _Law) -> Iterator[float]:
    """Yield the p-values that row norms and column norms vary as in random matrices."""
    square = (weight.double() / law.spread).square()
    for axis in (0, 1):
        n = square.shape[axis]
        off = (square.sum(axis) - n) / math.sqrt(n * (law.kurtosis - 1))
        freedom = len(off) / (1 + 6 / n)  # of few entries, sums of squares have wide tails
        yield float(chi2.sf(float(off.square().mean()) * freedom, freedom))


def neighbours(
    weight: Matrix, before: Sequence[Tensor], after: Sequence[Tensor]
) -> Iterator[float]:
    """Yield the p-value that the weights transmit as much between layers as random weights do.

    For weights ``W`` of independent entries of spread ``s`` and any ``A``, ``|A W|^2`` has the mean
    ``s^2 n tr(A^T A)`` and the variance ``2 s^4 n tr((A^T A)^2)``, here of a scaled chi-squared
    law. Layers that learned together agree on directions, and pass on far more. A neighbour whose
    width does not fit is skipped.
    """
    rows, columns = weight.shape
    for later in after:
        if later.shape[1] % rows == 0:
            yield _passed(later.reshape(len(later), rows, -1), weight)
    for earlier in before:
        if columns % len(earlier) == 0:
            parts = weight.reshape(rows, len(earlier), -1).transpose(0, 1).flatten(1)
            yield _passed(earlier.T[:, :, None], parts)


def _passed(reader: Float[Tensor, "out row place"], weight: Matrix) -> float:
    a, w = reader.transpose(1, 2).flatten(0, 1).float(), weight.float()
    w, n = w.to(a.device), w.shape[1]
    wide = len(a) <= a.shape[1]
    gram = a @ a.T if wide else a.T @ a  # either has the same trace and sum of squares
    trace, square = float(gram.trace()), float(gram.square().sum())
    if not (square > 0 and bool(w.any())):
        return 1.0
    passed = (a @ w).square().sum() if wide else (gram @ w * w).sum()
    through = float(passed / w.square().mean()) * trace / square
    return float(chi2.sf(through, n * trace**2 / square))


def spectrum_edge(weight: Matrix, spread: float) -> tuple[float, float]:
    """Return the largest singular value relative to random entries, and its p-value.

    Random entries of standard deviation ``s`` have a largest squared singular value of about
    ``s^2 (sqrt m + sqrt n)^2``, with Tracy-Widom fluctuations of order ``s^2 (sqrt m + sqrt n)
    (1 / sqrt m + 1 / sqrt n)^(1/3)``, here by the shifted gamma law that has its three moments.

    References
    ----------
    johnstone2001distribution
    """
    m, n = (x**0.5 for x in weight.shape)
    edge, width = (m + n) ** 2, (m + n) * (1 / m + 1 / n) ** (1 / 3)
    largest = (_largest(weight.float()) / spread) ** 2
    p = gamma.sf((largest - edge) / width + 9.84801, 46.446, scale=0.186054)
    return math.sqrt(largest / edge), float(p)


def _largest(weight: Matrix) -> float:
    """Return the largest singular value; for large matrices a lower bound by power iteration."""
    if weight.numel() <= 1 << 18:
        return float(torch.linalg.matrix_norm(weight, 2))
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(weight.shape[1], generator=generator).to(weight.device)
    for _ in range(STEPS):
        v = weight.T @ (weight @ (v / v.norm()))
    return float((weight @ (v / v.norm())).norm())


def _bias(bias: Tensor | None, columns: int) -> str | None:
    """Return the initialiser of a bias: "zero", "drawn", "" if missing, None if trained."""
    if bias is None:
        return ""
    if not bool(bias.any()):
        return "zero"
    bound, entries = columns**-0.5, np.sort(bias.double().cpu().numpy())
    if abs(entries[[0, -1]]).max() > bound * (1 + 1e-3):
        return None
    p = _fit_p(_distance(entries, _uniform(entries, bound)), len(entries))
    return "drawn" if p > 1e-3 else None


def _gains(
    stream: LiveStream, seed: int, layers: Mapping[str, tuple[Matrix, float]]
) -> dict[str, float]:
    """Return how strongly layers amplify their inputs, relative to random weights."""
    if not layers:
        return {}
    small = small_batches(stream.model, stream.inputs, chosen_examples(stream, ROWS, seed))
    if len(small) == 0:
        return {}
    sites = [Site(path, 0, "in") for path in layers]
    with untouched(stream.model.module), torch.no_grad():
        tensors = watch(
            stream.model.module,
            small.together(range(len(small))),
            sites,
            as_found=not stream.model.module.training,
            place=stream.probe.place,
        ).tensors
    gains: dict[str, float] = {}
    for site in sites:
        weight, spread = layers[site.path]
        x = tensors.get(str(site))
        if x is None or x.shape[-1] != weight.shape[1]:
            continue
        rows = x.reshape(-1, x.shape[-1]).float()
        through = (rows @ weight.float().T).square().sum() / (rows.square().sum() * len(weight))
        gains[site.path] = float(through) / spread**2
    return gains
