"""Latent reasoning: a language model's last state becomes its next input."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import softplus

from sonde.core.errors import InputError
from sonde.layers._attending import wide_type
from sonde.layers.layer import Layer
from sonde.tap.hooks.cache import cache_argument, cache_of, counts_positions


@final
class LatentLoop(Layer):
    """Let a causal language model run ``n_steps`` on its own states before it answers.

    After the prompt the state at the last position is turned into the next input, ``n_steps``
    times. ``replace`` feeds the state itself, normed to the size of the embeddings; ``attend`` lets
    it ask a second stream first; ``gate`` mixes it with the embedding ``e`` of the likeliest token:
    ``a e + sqrt(1 - a^2) (i h)``, ``a = exp(-c softplus(L) r)``, with gates ``r`` and ``i`` of
    ``e``. ``feedback="expected_embedding"`` takes ``h = E' p / |p|`` of the model's next-token
    probabilities ``p`` in place of the state, so that ``h`` is a mixture of embeddings.

    Cost         one forward of the model for each step, with a cache of one position; a model that
                 returns no cache reads all inputs again at each step.
    Assumes      a model of transformers that takes ``inputs_embeds``; padding at either end. For a
                 model that reads padding in spite of its mask (tried once) texts of one length run
                 together.

    Parameters
    ----------
    model : nn.Module
        A causal language model, trained along unless frozen.
    n_steps : int, default=3
        0 is the model itself.
    mix : {"replace", "attend", "gate"}, default="replace"
        How a state becomes the next input: alone, after it attended to a second stream, or mixed
        with an embedding.
    feedback : {"state", "expected_embedding"}, default="state"
        What is fed back: the state itself, or the mixture of embeddings that the next-token
        probabilities give.
    start : {"near", "zero"}, default="near"
        Start of ``gate``: ``near`` lets the second part in by ``a`` from ``a_range``, ``zero``
        scales it by a number that starts at 0.
    c : float, default=8.0
        Exponent of the gate ``r`` in ``a = exp(-c softplus(L) r)``, above 0.
    a_range : (float, float), default=(0.99, 0.999)
        Range from which each unit's first ``a`` is drawn, for an open gate ``r = 1``.
    temperature : float, default=0.5
        Temperature of the probabilities of ``expected_embedding``, above 0.
    sample : bool, default=False
        Draw the token of ``gate`` rather than take the likeliest.

    References
    ----------
    yue2025hrpo, pham2025mcout
    """

    paper: ClassVar[str] = "yue2025hrpo"
    variants: ClassVar[Mapping[str, str]] = {
        "mix='gate', feedback='expected_embedding'": "yue2025hrpo",
        "mix='attend'": "pham2025mcout",
    }
    layout: ClassVar[tuple[str, ...]] = ("row token",)
    insertable = False
    exact_gradient = False  # norms of a model may compute in float32
    bfloat16_safe = False  # as exact as the model; a rounding may change the likeliest token

    def __init__(
        self,
        model: Any,
        n_steps: int = 3,
        mix: Literal["replace", "attend", "gate"] = "replace",
        feedback: Literal["state", "expected_embedding"] = "state",
        start: Literal["near", "zero"] = "near",
        c: float = 8.0,
        a_range: tuple[float, float] = (0.99, 0.999),
        temperature: float = 0.5,
        sample: bool = False,
    ) -> None:
        super().__init__()
        low, high = a_range
        if n_steps < 0 or not 0 < low <= high < 1 or c <= 0 or temperature <= 0:
            raise InputError(
                "LatentLoop: expected n_steps of 0 or more, a_range inside (0, 1) and positive c "
                f"and temperature, got {n_steps}, {a_range}, {c} and {temperature}."
            )
        if not hasattr(model, "get_input_embeddings"):
            raise InputError(
                "LatentLoop: expected a causal language model of transformers, got "
                f"{type(model).__name__}."
            )
        table = model.get_input_embeddings().weight
        dim = table.shape[1]
        self.model, self.n_steps, self.mix, self.feedback = model, n_steps, mix, feedback
        self.c, self.temperature, self.sample = c, temperature, sample
        self.hides_padding: bool | None = None
        self.norm = nn.LayerNorm(dim)
        nn.init.constant_(self.norm.weight, float(table.detach().float().square().mean().sqrt()))
        self.ask = self.gates = self.part = None
        if mix == "attend":
            self.ask = nn.MultiheadAttention(dim, 1, batch_first=True)
            nn.init.zeros_(self.ask.out_proj.weight)
        if mix == "gate":
            self.gates = nn.Linear(dim, 2 * dim)
            a = torch.empty(dim).uniform_(low, high)
            self.rate = nn.Parameter(torch.log(torch.expm1(-a.log() / c)))
            if start == "zero":
                self.part = nn.Parameter(torch.zeros(()))

    def forward(
        self,
        ids: Int[Tensor, "row token"],
        mask: Bool[Tensor, "row token"] | None = None,
        memory: Float[Tensor, "row other dim"] | None = None,
    ) -> Float[Tensor, "row word"]:
        """Return the logits of the token after the latent steps.

        Parameters
        ----------
        ids : Int[Tensor, "row token"]
        mask : Bool[Tensor, "row token"], optional
            True for real tokens, which stand together; padding may stand at either end.
        memory : Float[Tensor, "row other dim"], optional
            The second stream, for ``mix="attend"``.
        """
        return self._run(ids, mask, memory)[1]

    def latents(
        self,
        ids: Int[Tensor, "row token"],
        mask: Bool[Tensor, "row token"] | None = None,
        memory: Float[Tensor, "row other dim"] | None = None,
    ) -> Float[Tensor, "row step dim"]:
        """Return the inputs of the latent steps; the parameters are those of a call."""
        return self._stacked(ids, [step[0] for step in self._run(ids, mask, memory)[0]])

    def openness(
        self,
        ids: Int[Tensor, "row token"],
        mask: Bool[Tensor, "row token"] | None = None,
    ) -> Float[Tensor, "row step dim"]:
        """Return the weight with which ``gate`` lets the second part into each step.

        Parameters
        ----------
        ids : Int[Tensor, "row token"]
        mask : Bool[Tensor, "row token"], optional
            True for real tokens.

        Raises
        ------
        InputError
            If ``mix`` is another.
        """
        self._require_gate("openness")
        words = [step[1].unsqueeze(1) for step in self._run(ids, mask, None)[0]]
        return self._stacked(ids, [self._weights(self._embedded(w)[:, 0])[1] for w in words])

    def rollout(
        self,
        ids: Int[Tensor, "row token"],
        mask: Bool[Tensor, "row token"] | None = None,
        words: Int[Tensor, "row step"] | None = None,
        draw: torch.Generator | None = None,
    ) -> tuple[Int[Tensor, "row step"], Float[Tensor, "row step"], Float[Tensor, "row word"]]:
        """Return the words of ``gate``, their log-probabilities, and the logits of a call.

        Rewards train the loop by a policy gradient: draw words without gradients, draw a token from
        the logits, then call again with those words, and weigh the log-probabilities of the words
        and of the token by the advantage. Gradients also pass through the states in the mix.

        Parameters
        ----------
        ids, mask
            As in a call.
        words : Int[Tensor, "row step"], optional
            Mixed in place of words that the loop chooses.
        draw : torch.Generator, optional
            Draws the words, whatever ``sample`` says.
        """
        self._require_gate("rollout")
        if words is not None and words.shape != (len(ids), self.n_steps):
            raise InputError(
                f"LatentLoop.rollout: expected words of shape ({len(ids)}, {self.n_steps}), got "
                f"{tuple(words.shape)}."
            )
        steps, logits = self._run(ids, mask, None, words, draw)
        if not steps:
            return ids[:, :0], logits[:, :0], logits
        _, chosen, chance = zip(*steps, strict=True)
        return torch.stack(chosen, 1), torch.stack(chance, 1), logits

    def prompt(
        self,
        ids: Int[Tensor, "row token"],
        mask: Bool[Tensor, "row token"] | None = None,
        memory: Float[Tensor, "row other dim"] | None = None,
    ) -> dict[str, Tensor]:
        """Return the arguments with which ``model.generate(**...)`` continues after the steps."""
        states = [step[0] for step in self._run(ids, mask, memory)[0]]
        packed, real = _to_the_end(ids, mask)
        if not bool(real.all()) and not self._hides_padding(packed, real):
            raise InputError(
                "LatentLoop.prompt: expected texts of the same length, because "
                f"{type(self.model).__name__} also reads padding tokens, got several lengths. "
                "Generate for texts of one length at a time."
            )
        embedded = torch.cat([self._embedded(packed), *(x.unsqueeze(1) for x in states)], 1)
        real = torch.cat([real, real.new_ones(len(ids), len(states))], 1)
        return {"inputs_embeds": embedded, "attention_mask": real.long()}

    def _run(
        self,
        ids: Tensor,
        mask: Tensor | None,
        memory: Tensor | None,
        words: Tensor | None = None,
        draw: torch.Generator | None = None,
    ) -> tuple[list[tuple[Tensor, ...]], Tensor]:
        """Return the latent steps, as ``_steps`` does, and the logits after them."""
        if (memory is not None) != (self.mix == "attend"):
            raise InputError(
                "LatentLoop: expected memory= with mix='attend', and no memory= with another mix."
            )
        packed, real = _to_the_end(ids, mask)
        if bool(real.all()) or self._hides_padding(packed, real):
            return self._steps(packed, real, memory, words, draw)
        lengths = real.sum(1)  # texts of one length at a time need no padding
        runs: list[tuple[list[tuple[Tensor, ...]], Tensor]] = []
        rows = [(lengths == n).nonzero().squeeze(1) for n in lengths.unique()]
        for row in rows:
            n = int(lengths[row[0]])
            some, chosen = (None if x is None else x[row] for x in (memory, words))
            runs.append(self._steps(packed[row, -n:], real[row, -n:], some, chosen, draw))
        back = torch.cat(rows).argsort()
        steps = [
            tuple(torch.cat(part)[back] for part in zip(*step, strict=True))
            for step in zip(*(steps for steps, _ in runs), strict=True)
        ]
        return steps, torch.cat([logits for _, logits in runs])[back]

    @torch.no_grad()
    def _hides_padding(self, packed: Tensor, real: Tensor) -> bool:
        """Return whether left padding leaves a text's last state unchanged, tested once."""
        if self.hides_padding is None:
            modes = [(part, part.training) for part in self.model.modules()]
            self.model.eval()
            row = int(real.sum(1).argmin())
            n = int(real[row].sum())
            ids, seen = packed[row : row + 1], real[row : row + 1]
            padded, alone = (
                self._again(self._embedded(ids[:, -m:]), seen[:, -m:]) for m in (ids.shape[1], n)
            )
            for part, mode in modes:
                part.training = mode
            gap = (padded - alone).float().norm() / alone.float().norm()
            self.hides_padding = bool(gap < (1e-4 if wide_type(alone) == alone.dtype else 3e-2))
        return self.hides_padding

    def _again(self, given: Tensor, real: Tensor) -> Tensor:
        """Return the last state after the inputs plus a repeat of their last input."""
        output, more = self._call(given, real, (None,)), real.new_ones(len(real), 1)
        return self._more(given, given[:, -1:], torch.cat([real, more], 1), output)[1]

    def _more(
        self, whole: Tensor, new: Tensor, real: Tensor, output: Any
    ) -> tuple[Tensor, Tensor, Any]:
        """Return all inputs, the last state and the output, after a further input."""
        whole = torch.cat([whole, new], 1)
        if (cache := cache_of(output)) is None:  # the model keeps its memory for itself
            output = self._call(whole, real, None)
        else:
            output = self._call(new, real, (cache,))
        return whole, output.hidden_states[-1][:, -1], output

    def _call(self, given: Tensor, real: Tensor, cache: Any) -> Any:
        """Run the model on the last inputs; ``real`` is the mask of all inputs."""
        place = (real.cumsum(1) - 1).clamp(min=0)[:, -given.shape[1] :]
        # a cache of a recurrent state alone takes no mask of the tokens before
        takes_mask = not (cache and cache[0] is not None) or counts_positions(cache[0])
        return self.model(
            inputs_embeds=given,
            attention_mask=real.long() if takes_mask and not bool(real.all()) else None,
            position_ids=place,
            use_cache=cache is not None,
            output_hidden_states=True,
            **({cache_argument(self.model): cache[0]} if cache else {}),
        )

    def _steps(
        self,
        packed: Tensor,
        real: Tensor,
        memory: Tensor | None,
        words: Tensor | None,
        draw: torch.Generator | None,
    ) -> tuple[list[tuple[Tensor, ...]], Tensor]:
        """Return the input of each step, for ``gate`` its word and log-probability; the logits."""
        whole, steps = self._embedded(packed), list[tuple[Tensor, ...]]()
        output = self._call(whole, real, (None,) if self.n_steps else None)
        for step in range(self.n_steps):
            state, logits = output.hidden_states[-1][:, -1], output.logits[:, -1]
            h = self._fed_back(state, logits)
            if self.mix == "gate":
                chance = (logits / self.temperature).log_softmax(-1)
                word = self._word(chance.detach(), draw) if words is None else words[:, step]
                likelihood = chance.gather(1, word.unsqueeze(1)).squeeze(1)
                steps.append((self._gated(h, word), word, likelihood))
            else:
                steps.append((self._plain(h, memory),))
            real = torch.cat([real, real.new_ones(len(real), 1)], 1)
            whole, _, output = self._more(whole, steps[-1][0].unsqueeze(1), real, output)
        return steps, output.logits[:, -1]

    def _fed_back(self, state: Tensor, logits: Tensor) -> Tensor:
        if self.feedback == "state":
            return state
        p = (logits / self.temperature).softmax(-1)
        return (p / p.norm(dim=-1, keepdim=True)) @ self._table()

    def _plain(self, h: Tensor, memory: Tensor | None) -> Tensor:
        """Return the next input of ``replace`` and ``attend``."""
        if self.ask is not None and memory is not None:
            asked = h.unsqueeze(1)
            h = h + self.ask(asked, memory, memory, need_weights=False)[0][:, 0]
        return self.norm(h) if self.feedback == "state" else h

    def _word(self, chance: Tensor, draw: torch.Generator | None) -> Tensor:
        if self.sample or draw is not None:
            return torch.multinomial(chance.exp(), 1, generator=draw)[:, 0]
        return chance.argmax(-1)

    def _stacked(self, ids: Tensor, steps: list[Tensor]) -> Tensor:
        """Return the steps side by side, (row, step, dim); a loop may have none."""
        table = self._table()
        return torch.stack(steps, 1) if steps else table.new_zeros(len(ids), 0, table.shape[1])

    def _require_gate(self, method: str) -> None:
        if self.mix != "gate":
            raise InputError(
                f"LatentLoop.{method}: expected mix='gate', which mixes words, got '{self.mix}'."
            )

    def _gated(self, h: Tensor, word: Tensor) -> Tensor:
        e = self._embedded(word.unsqueeze(1))[:, 0]
        a, second = self._weights(e)
        return a * e + second * h

    def _weights(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights of the embedding of a word, and of what is mixed with it."""
        r, i = cast(nn.Linear, self.gates)(e).sigmoid().chunk(2, -1)
        a = torch.exp(-self.c * softplus(self.rate) * r)
        second = (1 - a.square()).clamp(min=0).add(1e-8).sqrt() * i
        return a, second if self.part is None else self.part * second

    def _embedded(self, ids: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(ids)

    def _table(self) -> Tensor:
        return self.model.get_input_embeddings().weight


def _to_the_end(ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the ids with all padding first, and a mask of real tokens; padding is token 0."""
    if mask is None:
        return ids, torch.ones_like(ids, dtype=torch.bool)
    order = mask.long().argsort(dim=1, stable=True)
    real = mask.gather(1, order)
    return ids.gather(1, order).masked_fill(~real, 0), real
