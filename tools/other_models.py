"""Print which functions notice that a model is not the one that their fitted thing belongs to.

``python -m tools.other_models``: every function that takes a model and what was fitted, measured
or begun on one, against models whose weights are equal but that compute something else: another
active adapter, an exchanged activation function, another eps, other packed weights. A cell holds
"named" if the message names the change, "refused" if it refuses without the name, "anew" if the
function begins anew, "passes", or "-" if the function does not take such a model.
"""

import copy
import json
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sonde
from sonde import Guard
from sonde.compress import (
    GPTQ,
    BitAllocation,
    BitStack,
    CoordinateRounding,
    DecoupleQ,
    ExtractExperts,
    LowRankWeights,
    MergeExperts,
    PruneWeights,
    SequenceCoder,
    SparseGPT,
    WeightCodebook,
    expert_use,
    layer_grams,
    unit_use,
)
from sonde.core import Model, SondeError
from sonde.data import open_inputs
from sonde.detect import Mahalanobis
from sonde.edit import SelectiveDampening
from sonde.explain import SparseAutoencoder
from sonde.measure import Covariance
from sonde.run.explaining.dictionaries import open_dictionary
from sonde.run.explaining.explain_answers import explain_answers
from sonde.run.explaining.explain_units import explain_units
from sonde.run.fitting.fit import fit
from sonde.run.fitting.live_model import require_model_of
from sonde.run.scoring.calibrate import calibrate
from sonde.serving.served import ServedModel
from sonde.store import append_store, write_store
from sonde.tap import squared_gradients
from sonde.tap.training.identity import Origin

DRAW = torch.Generator().manual_seed(0)
ROWS, MORE = torch.randn(2, 60, 6, generator=DRAW)
ITEMS = [{"x": x, "label": int(x[0] > 0)} for x in ROWS]
TOKENS = torch.randint(3, 32, (4, 8), generator=DRAW)


class Net(nn.Module):
    """A small classifier with a function, a norm and linear layers that can be exchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 4)
        self.act = F.relu

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.b(self.act(self.norm(self.a(x))))


class Dense(nn.Module):
    """One hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the layer."""
        return self.down(F.relu(self.up(x)))


class Blocks(nn.Module):
    """A small model of token ids with a dense block."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.act = nn.Embedding(32, 8), nn.LayerNorm(8), F.relu
        self.mlp, self.head = Dense(), nn.Linear(8, 32)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the logits of each token."""
        return self.head(self.act(self.norm(self.mlp(self.table(input_ids)))))


def adapted(module: nn.Module, *targets: str) -> Any:
    """Return a module with the adapters ``one``, which acts, and ``two``."""
    import peft

    def settings() -> Any:
        return peft.LoraConfig(target_modules=list(targets), r=2, init_lora_weights=False)

    found = peft.get_peft_model(module, settings(), "one")
    found.add_adapter("two", settings())
    found.set_adapter("one")
    return found.eval()


def packed(seed: int) -> nn.Module:
    """Return a small net with packed weights, which are neither parameters nor buffers."""
    torch.manual_seed(seed)
    plain = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    return torch.ao.quantization.quantize_dynamic(plain, {nn.Linear}, dtype=torch.qint8)


def set_at(path: str, name: str, value: Any) -> Callable[[Any], Any]:
    """Return a change of one attribute of a module."""

    def change(model: Any) -> Any:
        setattr(model.get_submodule(path), name, value)
        return model

    return change


def second_adapter(model: Any) -> Any:
    """Return the model with its other adapter active."""
    model.set_adapter("two")
    return model


@dataclass(frozen=True)
class Change:
    """A model, another one with equal weights, and the words that name the difference."""

    build: Callable[[], Any]
    other: Callable[[Any], Any]
    named: str


@dataclass(frozen=True)
class Job:
    """Fit something on a model, then use it with a model; ``kind`` is the model that it takes."""

    name: str
    kind: str
    fit: Callable[[Any, Path], Any]
    use: Callable[[Any, Any, Path], Any]


def _net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def _causal() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=4,
        max_position_embeddings=64, bos_token_id=1, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return MixtralForCausalLM(config).eval()


def _blocks() -> Blocks:
    torch.manual_seed(0)
    return Blocks().eval()


ADAPTER, FUNCTION, EPS = "adapter 'two'", "act is", "norm is|epsilon"
"""Words that name a change in messages."""

CHANGES = {
    "net": {
        "adapter": Change(lambda: adapted(_net(), "a"), second_adapter, ADAPTER),
        "function": Change(_net, set_at("", "act", F.gelu), FUNCTION),
        "eps": Change(_net, set_at("norm", "eps", 0.5), EPS),
        "packed": Change(lambda: packed(0), lambda _: packed(3), "_packed_params"),
    },
    "causal": {
        "adapter": Change(lambda: adapted(_causal(), "q_proj"), second_adapter, ADAPTER),
        "function": Change(
            _causal, set_at("model.layers.0.mlp.experts", "act_fn", nn.ReLU()), "act_fn is"
        ),
        "eps": Change(_causal, set_at("model.norm", "variance_epsilon", 0.5), EPS),
    },
    "blocks": {
        "adapter": Change(lambda: adapted(_blocks(), "head"), second_adapter, ADAPTER),
        "function": Change(_blocks, set_at("", "act", F.gelu), FUNCTION),
        "eps": Change(_blocks, set_at("norm", "eps", 0.5), EPS),
    },
}


def _read(model: Any, rows: Tensor = ROWS) -> Any:
    names = [name for name, _ in model.named_modules()]
    site = next(n for n in names if n.endswith((".a", ".0")) or n in ("a", "0"))
    return sonde.read(model, rows, sites=site)


def _site(model: Any) -> str:
    return str(_read(model).schema[0].site)


def _fitted(model: Any, _: Path) -> Any:
    return fit(Mahalanobis(), _read(model), calibrate=0.3, progress=False)


def _covariance(model: Any, _: Path) -> Any:
    return fit(Covariance(), _read(model), progress=False)


def _dictionary(model: Any, to: Path) -> Path:
    sae = SparseAutoencoder(features=8, k=2, batch=16, mixed=2)
    path = to / "codes.sonde"
    fit(sae, _read(model), progress=False).save(path)
    return path


def _grams(model: Any, _: Path) -> Any:
    return layer_grams(Model(model), open_inputs(Model(model), ROWS), progress=False)


def _directory(model: Any, to: Path) -> Path:
    fit(Covariance(), _read(model), progress=False, directory=to / "run")
    return to / "run"


def _stored(model: Any, to: Path) -> Path:
    write_store(_read(model), to / "acts")
    return to / "acts"


def _kept(model: Any, to: Path) -> Path:
    explain_answers(
        model, ITEMS, methods="saliency", limit=4, directory=to / "kept", progress=False
    )
    return to / "kept"


def _explained_again(model: Any, _: Path, to: Path) -> None:
    before = sorted(path.name for path in to.glob("kept/**/*.sonde"))
    assert before, "nothing was kept"
    _kept(model, to)
    if sorted(path.name for path in to.glob("kept/**/*.sonde")) != before:
        raise Anew


class Anew(Exception):
    """A job that did not take what an earlier run left behind."""


def _ids(model: Any) -> Any:
    return open_inputs(Model(model), TOKENS)


def _coder(model: Any) -> SequenceCoder:
    return SequenceCoder(Model(model, config=model.config))


def _jobs() -> list[Job]:
    calibrated = (
        GPTQ(), BitAllocation(by="error"), BitStack(), CoordinateRounding(), DecoupleQ(),
        LowRankWeights(), PruneWeights(refit=True), SparseGPT(), WeightCodebook(),
    )  # fmt: skip
    found = [
        Job("score", "net", _fitted, lambda m, f, _: sonde.score(f, _read(m, MORE))),
        Job("calibrate", "net", _fitted, lambda m, f, _: calibrate(f, _read(m, MORE))),
        Job("Guard", "net", _fitted, lambda m, f, _: Guard(m, f, alpha=None)),
        Job("serve", "net", _fitted, lambda m, f, _: ServedModel(m, f)),
        Job("merge", "net", _covariance, lambda m, f, _: sonde.merge(f, _covariance(m, _))),
        Job("fit(directory=)", "net", _directory, lambda m, _, to: _directory(m, to)),
        Job("read --append", "net", _stored,
            lambda m, path, _: append_store(_read(m, MORE), path)),
        Job("explain_answers(dictionary=)", "net", _dictionary,
            lambda m, path, _: explain_answers(m, ITEMS, dictionary=path, site=_site(m),
                                               methods="saliency", limit=4, progress=False)),
        Job("explain_units(dictionary=)", "net", _dictionary,
            lambda m, path, _: explain_units(m, ITEMS, _site(m), dictionary=path, progress=False)),
        Job("generate --dictionary", "net", _dictionary,
            lambda m, path, _: open_dictionary(path, Model(m))),
        Job("generate --steer", "net", _fitted,
            lambda m, f, to: require_model_of(f.header, Model(m), "--steer", to)),
        Job("explain_answers(directory=)", "net", _kept, _explained_again),
        Job("training (resumed)", "net", lambda m, _: Origin(copy.deepcopy(m), None, []).facts(),
            lambda m, f, _: Origin(m, None, []).check(f, "Terms.load", weights=True)),
        Job("SelectiveDampening", "net",
            lambda m, _: squared_gradients(m, open_inputs(Model(m), ITEMS), progress=False),
            lambda m, f, _: SelectiveDampening(0.5).plan(m, {"forget": f, "all": f})),
        Job("ExtractExperts", "blocks", lambda m, _: unit_use(m, _ids(m)),
            lambda m, f, _: ExtractExperts().extract(m, {"a": f})),
        Job("MergeExperts", "causal", lambda m, _: expert_use(m, _ids(m)),
            lambda m, f, _: MergeExperts(keep=0.5).plan(m, {"calibration": f})),
        Job("decode", "causal", lambda m, _: _coder(m).encode(TOKENS[0]),
            lambda m, coded, _: _coder(m).decode(coded)),
    ]  # fmt: skip

    def planned(method: Any) -> Callable[[Any, Any, Path], Any]:
        return lambda m, f, _: method.plan(m, {"calibration": f})

    return found + [Job(type(m).__name__, "net", _grams, planned(m)) for m in calibrated]


def ask(job: Job, change: Change) -> str:
    """Return what a job does with a model that computes something else."""
    with TemporaryDirectory() as folder:
        to, model = Path(folder), change.build()
        try:
            fitted = job.fit(model, to)
        except Exception as error:  # this kind of model is not taken at all
            return f"- ({type(error).__name__}: {str(error)[:60]})" if "-v" in sys.argv else "-"
        try:
            job.use(change.other(model), fitted, to)
        except Anew:
            return "anew"
        except (SondeError, OSError) as error:
            text = f"{error} {' '.join(getattr(error, '__notes__', []))}"
            return "named" if re.search(change.named, text) else f"refused: {error}"
        return "passes"


def table() -> dict[str, dict[str, str]]:
    """Return what each job does with each change, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            job.name: {name: ask(job, change) for name, change in CHANGES[job.kind].items()}
            for job in _jobs()
        }


def main() -> None:
    """Print the table."""
    names = list(CHANGES["net"])
    found = table()
    if "--json" in sys.argv:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return
    sys.stdout.write(f"| takes a model and a fitted thing | {' | '.join(names)} |\n")
    sys.stdout.write("|---" * (len(names) + 1) + "|\n")
    for job, cells in found.items():
        row = " | ".join(cells.get(name, "-") for name in names)
        sys.stdout.write(f"| {job} | {row} |\n")


if __name__ == "__main__":
    main()
