"""Add losses at sites to a training run by the ``Trainer`` of transformers.

In a loop of your own, and in Lightning's ``training_step``, add ``terms.loss(...)`` yourself.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sonde.core.errors import InputError, StateError
from sonde.run.training.callback import log_of
from sonde.tap.hooks.outputs import arguments
from sonde.tap.training.terms import Terms

LABELS = ("labels", "label")
STATE, OPTIMISER = "terms.safetensors", "terms_optimizer.pt"


class TermsCallback(TrainerCallback):
    """Adds losses at sites to the loss of the model that a ``Trainer`` trains.

    Parameters of the losses have an Adam of their own, at the learning rate of the Trainer's
    optimiser. Figures, means since the last log, go into the Trainer's log. The state is saved into
    each checkpoint, and a training that is resumed goes on from it.

    Parameters
    ----------
    terms : Terms
        Losses at sites, made by ``sonde.training`` on the model that the ``Trainer`` trains.

    Notes
    -----
    Training in float16 is refused: it scales gradients. Take bfloat16.
    """

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self._handle: RemovableHandle | None = None
        self._optimiser: torch.optim.Optimizer | None = None
        self._sums: dict[str, list[float]] = {}
        self._share, self._saved, self._log = 1.0, None, None
        self._unused = False

    def log_to(self, target: Any) -> None:
        """Send metrics to a logger, or to the ``Trainer`` and its reporters."""
        self._log = log_of(target)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start adding losses; resume from a checkpoint if the Trainer does."""
        if args.fp16:
            raise InputError("TermsCallback: expected float32 or bf16=True, got fp16=True.")
        if args.label_smoothing_factor:
            raise InputError(
                "TermsCallback: expected label_smoothing_factor=0, got "
                f"{args.label_smoothing_factor:g}: with label smoothing, the Trainer takes the "
                "labels away from the model and computes the loss itself. Smooth labels inside "
                "the model."
            )
        if kwargs["model"] is not self.terms.module:
            raise InputError(
                "TermsCallback: expected the Trainer's model to be the model of sonde.training. "
                "Open sonde.training on the model that the Trainer trains."
            )
        self._share = 1.0 / args.gradient_accumulation_steps
        if args.average_tokens_across_devices:
            self._share /= args.world_size
        folder = _checkpoint(args, state)
        if state.global_step and (folder / STATE).exists():
            self.terms.load(folder / STATE)
            self._saved = folder / OPTIMISER
        self._hook()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Update the parameters of the losses."""
        own = self.terms.parameters()
        if not own:
            return
        if self._optimiser is None:
            self._optimiser = torch.optim.Adam(own)
            if self._saved is not None and self._saved.exists():
                self._optimiser.load_state_dict(torch.load(self._saved, weights_only=True))
        for group in self._optimiser.param_groups:
            group["lr"] = kwargs["optimizer"].param_groups[0]["lr"]
        self._optimiser.step()
        self._optimiser.zero_grad()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Advance to the next step, and send metrics if the step is due."""
        if self._unused:
            raise StateError(
                "TermsCallback: the losses at sites were added to the loss in the model's "
                "outputs, but no gradient reached them: the Trainer trains another loss, such "
                "as compute_loss_func or an overridden compute_loss. Add terms.loss(...) to "
                "that loss in place of this callback."
            )
        self.terms.step()
        self._hook()
        if control.should_log and self._log is not None:
            self._log(self._figures(), state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the metrics to the Trainer's own log."""
        if self._log is None and logs is not None and "loss" in logs:
            figures = self._figures()
            logs.update(figures)
            state.log_history[-1].update(figures)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the losses' state into the checkpoint."""
        if state.is_world_process_zero:
            folder = _checkpoint(args, state)
            self.terms.save(folder / STATE)
            if self._optimiser is not None:
                torch.save(self._optimiser.state_dict(), folder / OPTIMISER)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop adding losses."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _used(self, gradient: Tensor) -> None:
        self._unused = False

    def _figures(self) -> dict[str, float]:
        means = {f"sonde/{name}": sum(x) / len(x) for name, x in self._sums.items()}
        self._sums = {}
        return means

    def _hook(self) -> None:
        """Register the loss hook again so that it runs after the model's other hooks."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = self.terms.module.register_forward_hook(self._added, with_kwargs=True)

    def _added(self, model: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        """Return the output with the losses added to its loss, or None outside training."""
        if not (model.training and torch.is_grad_enabled()):
            return None
        if not isinstance(output, dict) or output.get("loss") is None:
            raise InputError(
                "TermsCallback: expected outputs with a loss, got none. Give the model labels, "
                "and do not pass compute_loss_func to the Trainer, which takes the labels away. "
                "With a loss of your own, add terms.loss(...) to it in place of this callback."
            )
        named = arguments(model, args, kwargs)
        columns = {name: x for name, x in named.items() if isinstance(x, Tensor) and x.ndim == 1}
        label = next((named[name] for name in LABELS if _is_label(named.get(name))), None)
        columns |= {} if label is None else {"label": label}
        columns |= {"logits": output["logits"]} if "logits" in output else {}
        given: dict[str, Any] = {n: x for n, x in columns.items() if n in self.terms.takes}
        value = self.terms.loss(**given)
        for name, figure in self.terms.figures.items():
            self._sums.setdefault(name, []).append(figure)
        if value.requires_grad:
            self._unused = True
            value.register_hook(self._used)
        is_summed = named.get("num_items_in_batch") is not None
        output["loss"] = output["loss"] + value * (self._share if is_summed else 1.0)
        return output


def _is_label(column: Any) -> bool:
    """Return whether a column has a label for each example: a class, or numbers."""
    if not isinstance(column, Tensor) or not column.ndim:
        return False
    return column.ndim == 1 or (column.ndim == 2 and column.is_floating_point())


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
