"""``sonde compress``: a smaller model, and what that did to its answers."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sonde.cli.console import note, say, say_json
from sonde.cli.options import DataWord, ModelWord, Printing, named
from sonde.core.errors import InputError

if TYPE_CHECKING:
    from sonde.compress import Fidelity
    from sonde.core.inputs import Model
    from sonde.weights import Rewrite

MIB = 2**20


@dataclass(frozen=True)
class Compress:
    """Write a model with smaller weights, and say what it costs.

    Linear layers are rounded to a few bits, with a scale for each group of weights; embeddings,
    norms and convolutions stay. The first --limit examples of DATA say which errors matter, the
    --held examples behind them say what changed. `sonde compress undo SMALL -o OLD` gives every
    file back while SMALL.patch lies beside it.

    Example: sonde compress sonde:stdlib sonde:stdlib/train --to 4bit --limit 16 --held 8 -o SMALL
    """

    model: ModelWord
    data: DataWord
    output: Annotated[
        Path, tyro.conf.arg(aliases=["-o"], metavar="SMALL", help="folder for the smaller model")
    ]
    to: Annotated[str, named("SIZE", "bits of a weight: 2bit to 8bit (default: 4bit)")] = "4bit"
    method: Annotated[
        Literal["gptq", "rtn"],
        tyro.conf.arg(help="gptq spreads errors by what layers read, rtn rounds to the nearest"),
    ] = "gptq"
    group: Annotated[int, named("N", "weights that share a scale (default: 32)")] = 32
    limit: Annotated[int, named("N", "examples to calibrate on (default: 128)")] = 128
    held: Annotated[int, named("N", "examples behind these to compare on (default: 64)")] = 64
    text_column: Annotated[str | None, named("NAME", "column of the text")] = None
    label_column: Annotated[str | None, named("NAME", "column of the label")] = None
    device: Annotated[str, tyro.conf.arg(help="auto, cpu, cuda or mps")] = "auto"
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Plan, compare, write and tell."""
        from sonde.compress import fidelity, kernels
        from sonde.data import load, open_inputs
        from sonde.weights import save_edited
        from sonde.weights.folder import check_output, folder_of

        rule = self._rule()
        model = load(self.model, device=self.device)
        check_output(self.output, folder_of(model))
        options = {"text_column": self.text_column, "label_column": self.label_column}
        n = self.limit + self.held
        inputs = open_inputs(model, self.data, split="train", limit=n, **options)
        if len(inputs) <= self.limit:
            raise InputError(
                f"sonde compress: expected more than {self.limit} examples (--limit to calibrate "
                f"on, then some to compare on), got {len(inputs)}. Lower --limit."
            )
        plan = rule.plan(model, self._calibration(model, inputs))
        new = plan.fold(model)
        found = fidelity(model, new, inputs, start=self.limit, stop=n)
        saved = save_edited(model, plan, self.output, name=self.model)
        document = {
            "model": self.model,
            "method": plan.method,
            "layers": len(plan.packed),
            "bytes": _bytes(folder_of(model), self.output),
            "memory": _memory(model.module, new),
            "fidelity": found.json(),
            "calibrated_on": self.limit,
            "kernels": kernels(),
            "figures": dict(plan.figures),
        }
        if self.printing.json:
            say_json(document)
        else:
            say("\n".join(_lines(document, found)[: 1 if self.printing.quiet else None]))
        note(f"wrote {self.output}, and {saved.patch} to take it back")
        return 0

    def _rule(self) -> "Rewrite":
        from sonde.compress import GPTQ, RTN

        told = re.fullmatch(r"([2-8])[ -]?bits?", self.to.strip())
        if told is None:
            raise InputError(f"--to: expected 2bit to 8bit, got {self.to!r}.")
        kind = {"gptq": GPTQ, "rtn": RTN}[self.method]
        return kind(bits=int(told[1]), group=self.group)

    def _calibration(self, model: "Model", inputs: Any) -> dict[str, Any]:
        from sonde.compress import layer_grams

        if self.method == "rtn":
            return {}
        grams = layer_grams(model, inputs, stop=self.limit, progress=not self.printing.quiet)
        return {"calibration": grams}


def _bytes(old: Path, new: Path) -> list[int]:
    """Return the bytes of the weight files before and after."""
    from sonde.weights.folder import weight_bytes

    return [weight_bytes(folder) for folder in (old, new)]


def _memory(old: Any, new: Any) -> list[int]:
    """Return the bytes that the tensors of both models take, after a run."""
    from sonde.weights import QuantLinear

    found: list[int] = []
    for module in (old, new):
        held = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
                for x in [*module.parameters(), *module.buffers()]}  # fmt: skip
        ready = sum(m.ready_bytes for m in module.modules() if isinstance(m, QuantLinear))
        found.append(sum(held.values()) + ready)
    return found


def _lines(told: dict[str, Any], found: "Fidelity") -> list[str]:
    disk, memory = told["bytes"], told["memory"]
    gains = [before / max(1, after) for before, after in (disk, memory)]
    flips = f"{found.right_to_wrong:.1%} right to wrong, {found.wrong_to_right:.1%} wrong to right"
    return [
        f"files {gains[0]:.1f} x smaller, memory {gains[1]:.1f} x; "
        f"the answer changed on {found.changed:.1%} of {found.n:,}",
        f"method   {told['method']}, {told['layers']} layers",
        f"bytes    {disk[0] / MIB:.2f} -> {disk[1] / MIB:.2f} MiB of weights on disk, "
        f"{memory[0] / MIB:.2f} -> {memory[1] / MIB:.2f} MiB in memory after a run",
        f"answers  KL {found.kl:.4g} nats in the mean, {found.kl_99:.4g} at the 99 % quantile; "
        f"{flips}",
        f"kernels  {', '.join(told['kernels'])} on this machine; each layer takes the fastest",
    ]
