"""SND067: tokens with a far higher loss than other tokens."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

from sonde.findings.evidence.modules.fresh_weights import untrained_share
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.texts.best_text import best_text
from sonde.findings.evidence.texts.lens import LensEvidence, measure_lens
from sonde.findings.evidence.texts.read_in_a_row import read_in_a_row
from sonde.findings.evidence.texts.token_rows import BEYOND, OddToken, TokenRows, token_rows
from sonde.findings.rule import Breaks, Check, Explains, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.trial import Trial
from sonde.findings.words.places import sentence
from sonde.findings.words.text import listed, number, plural

STANDS = 0.19  # below the effect of exchanged rows from which on they explain other findings


@final
@dataclass(frozen=True)
class SND067(Rule):
    """Loss at or after some tokens, minus the loss of n-gram counts.

    Parameters
    ----------
    share : float, default=0.05
        Least fall of the loss, as a share, for rows to be called exchanged.
    forms : float, default=1.5
        How many times the fall of the exchange another form of the texts may reach.
    level : float, default=0.001
        Of the signed rank test on texts that did not choose the pairs.
    cost : float, default=0.01
        Least cost of the tokens that stand out for each token of the texts, in nats, for a warning.
    untrained : float, default=0.5
        Least share of layers that look untrained at which the model is not judged.
    """

    share: float = 0.05
    forms: float = 1.5
    level: float = 0.001
    cost: float = 0.01
    untrained: float = 0.5

    title: ClassVar[str] = "Tokens with a far higher loss than others"
    theme: ClassVar[Theme] = "run"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("unknown tokens",)
    breaks: ClassVar[Breaks] = "some answers"
    explains: ClassVar[tuple[Explains, ...]] = (
        Explains(("SND026", "SND028", "SND029", "SND037", "SND064", "SND066"), least=0.2),
    )
    why: ClassVar[str] = (
        "Rows of an embedding or of a head that belong to other tokens, or tokens that training "
        "never showed, spoil every text that holds them."
    )
    fix: ClassVar[str] = (
        "Check that the rows of these tokens in the embedding and the head have the ids that the "
        "model's tokenizer gives these tokens."
    )
    how: ClassVar[str] = (
        "On 48 texts, the model's next-token loss minus that of counts of three tokens from the "
        "other texts; its mean at each token, and after each token. A token is odd if this "
        "excess is at least 0.5 nats, 1.5 nats above the median of the other tokens, and 4 "
        "standard errors away, at 10 positions in 4 texts or more. It is reported if the model "
        "as a whole beats these counts, and if the excess stays at least 0.5 nats where the "
        "texts are read one after another; the finding is a note if it costs less than 0.01 "
        "nats per token of the texts. If two tokens are odd, up to ten odd tokens exchange their "
        "rows of the embedding, of the head or of both, pair by pair, on half of up to 48 "
        "texts; exchanged rows are reported if the loss of the other half falls by a twentieth "
        "(signed rank test, 0.1 %), below that of the tokens' frequencies, and no other form of "
        "the texts (SND028) lowers it 1.5 times as much."
    )
    false_positives: ClassVar[str] = "Tokens of a language that the model never saw."
    plant: ClassVar[str] = (
        "The shipped language model with the embeddings of two letters exchanged."
    )
    twin: ClassVar[str] = "The unchanged model."

    def check(self, evidence: Evidence) -> Check:
        """Search for tokens whose loss stands out."""
        tokens, lens = evidence.get(token_rows), evidence.get(measure_lens)
        if not isinstance(tokens, TokenRows) or not isinstance(lens, LensEvidence):
            return self.not_applicable("the model does not predict a next token")
        worst = tokens.odd[0].beyond if tokens.odd else 0.0
        figure = Figure(
            "loss_beyond_counts", worst, unit="nats", null=0.0, n_rows=lens.n_rows,
            n_groups=lens.n_groups,
        )  # fmt: skip
        if not tokens.odd:
            return self.clear(figure)
        if untrained_share(evidence) >= self.untrained:
            return self.clear(figure, "the model's layers look untrained")
        if tokens.rows is not None and tokens.p < self.level:
            own, new = float(tokens.given.mean()), float(tokens.changed.mean())
            form = best_text(evidence)
            least = 0.0 if form is None else (1 - form.ratio) / self.forms
            if new < min((1 - max(self.share, least)) * own, lens.unigram):
                return self._of_pairs(tokens, figure, own, new)
        if not lens.beats_counts:
            return self.clear(figure, "the model predicts worse than counts of tokens")
        left = _left_in_a_row(tokens, evidence)
        if not left.odd:
            return self.clear(
                figure, "the tokens are predicted once the model has read some of the texts"
            )
        return self._of_tokens(left, figure)

    def _of_pairs(self, found: TokenRows, figure: Figure, own: float, new: float) -> Check:
        pairs = listed([f"{_word(found, a)} and {_word(found, b)}" for a, b in found.pairs], 3)
        gain = f"{number(new, 3)} nats per token instead of {number(own, 3)}"
        text = f"With the rows of {pairs} in the {found.rows} exchanged, the model's loss is {gain}"
        return self.raised_with(
            "warning",
            sentence(f"{text} ({plural(len(found.given), 'text')} held out from the choice)."),
            figure,
            effect=min(1.0, 1 - new / own),
            fix=f"Exchange the rows of {pairs} in the {found.rows}, or load those that belong to "
            f"this tokenizer: {gain}.",
            trial=Trial(
                f"the rows of {pairs} in the {found.rows} exchanged",
                "part",
                "loss",
                found.texts,
                -found.given,
                -found.changed,
                group=found.group,
            ),
        )

    def _of_tokens(self, found: TokenRows, figure: Figure) -> Check:
        first = found.odd[0]
        same = [o for o in found.odd if o.side == first.side]
        text = (
            f"{first.side.capitalize()} {_tokens(found, same)} the model's loss is "
            f"{number(first.beyond)} nats above that of counts of three tokens; at the other "
            f"tokens it is {number(abs(first.elsewhere))} nats "
            f"{'below' if first.elsewhere < 0 else 'above'}."
        )
        cost = sum(o.n * o.beyond for o in same) / max(1, figure.n_rows)
        return self.raised_with(
            "warning" if cost >= self.cost else "note",
            sentence(text, f"{plural(first.n, 'place')}."),
            figure,
            effect=min(STANDS, cost),
        )


def _left_in_a_row(tokens: TokenRows, evidence: Evidence) -> TokenRows:
    """Return the odd tokens without those that counts knew from texts of the same form."""
    row = evidence.get(read_in_a_row)
    if row is None:
        return tokens
    odd = [o for o in tokens.odd if row.beyond_of(o.token, o.side == "after") > BEYOND]
    return replace(tokens, odd=tuple(odd))


def _tokens(found: TokenRows, odd: list[OddToken]) -> str:
    words = listed([_word(found, o.token) for o in odd], 4)
    return f"the token{'s' if len(odd) > 1 else ''} {words}"


def _word(found: TokenRows, token: int) -> str:
    word = found.words.get(token)
    return f"number {token}" if word is None or "\ufffd" in word else repr(word)
