"""Federated training: cost and savings of compressed updates."""

from collections.abc import Callable
from typing import Any

from sonde import Model
from sonde.compress import QsgdCodec, SignCodec, TopKCodec
from sonde.core import ChartAxis, Codec, curves
from sonde.data import open_inputs, rows_of
from sonde.report import Answer
from sonde_studies.parts.choice import unless_untold
from sonde_studies.parts.federation import Federation
from sonde_studies.parts.figures import ACCURACY
from sonde_studies.parts.once import copies_once
from sonde_studies.parts.owners import groups_told, owners_of

QUESTION = "How many bits of uplink does training together need?"
WORSE = 0.02
PLAIN, CONTROL = "plain averaging", "control variates"
CODECS: dict[str, Callable[[int], Codec] | None] = {
    PLAIN: None,
    CONTROL: None,
    f"{CONTROL}, 7 bits": lambda seed: QsgdCodec(levels=63, seed=seed),
    f"{CONTROL}, top 5 %": lambda _: TopKCodec(0.05),
    f"{CONTROL}, signs": lambda _: SignCodec(),
}
INERT, INERTIA = f"{CONTROL}, top 5 %, inertia", 0.5
CODECS[INERT] = CODECS[f"{CONTROL}, top 5 %"]
ARMS = tuple(CODECS)


@copies_once()
def federated_bits(
    model: Model,
    data: Any,
    *,
    client_column: str = "client",
    label_column: str | None = None,
    rounds: int = 20,
    local_steps: int = 5,
    batch_size: int = 32,
    rate: float = 0.1,
    take_part: float = 1.0,
    group_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Train a classifier as a federation of clients would, and count what they send.

    Arms: averaging of local steps; control variates, which take out the drift of clients with
    different data; and control variates if clients send 7 bits a number, the largest 5 % (of a
    running mean of their gradients, too), or signs alone. All is simulated on this machine; three
    tenths of the rows judge.

    Example: sonde recipe federated-bits MODEL DATA --client-column hospital -o federation.html

    Parameters
    ----------
    model : Model
        The classifier that all start from, trained or not. It is not changed.
    data : str, path or iterable
        Labelled rows with the client that holds them.
    client_column : str, default="client"
        Column of the client.
    label_column : str, optional
        Column of the class, where its name does not say so.
    rounds : int, default=20
        How often clients send.
    local_steps : int, default=5
        Steps of a client in each round.
    batch_size : int, default=32
        Rows of a step.
    rate : float, default=0.1
        Of gradient descent.
    take_part : float, default=1.0
        Share of the clients that train and send in each round, drawn by lot.
    group_column : str, optional
        Column of the person or document of a row, if its name is not "group". Rows of one group,
        and near copies, are never on both sides of a split.
    limit : int, optional
        Read only the first rows.
    seed : int, default=0
        Draws the rows that judge, batches and the rounding of codecs.
    """
    options: dict[str, Any] = {"label_column": label_column, "limit": limit}
    options |= {"group_column": group_column}
    options |= {"ignore_columns": client_column, "batch_size": batch_size}
    inputs = open_inputs(model, data, **options)
    owner = [row.get(client_column) for row in rows_of(data, limit)]
    groups = owners_of(data, group_column, limit)
    federation = Federation(model, inputs, owner, groups, rate, local_steps, seed)
    ran = {
        arm: federation.trained(
            rounds, arm != PLAIN, codec,
            take_part=take_part, inertia=INERTIA if arm == INERT else 0.0,
        )
        for arm, codec in CODECS.items()
    }  # fmt: skip
    found, right = ({arm: parts[i] for arm, parts in ran.items()} for i in (0, 1))
    score = {arm: curve[-1]["accuracy"] for arm, curve in found.items()}
    sent = {arm: curve[-1]["megabytes"] for arm, curve in found.items()}
    share = {arm: size / sent[PLAIN] for arm, size in sent.items()}
    fits = [arm for arm in ARMS if score[arm] >= score[PLAIN] - WORSE]
    chosen = min(fits, key=lambda arm: sent[arm])
    points = [row | {"arm": arm} for arm, curve in found.items() for row in curve]
    x = ChartAxis("megabytes", title="megabytes of uplink, all clients", log=True)
    size = sum(p.numel() for p in model.module.parameters())
    return Answer(
        question=QUESTION,
        **unless_untold(chosen, right, federation.label),
        sentence=f"{PLAIN.capitalize()} reaches accuracy {score[PLAIN]:.3f} with "
        f"{sent[PLAIN]:.3g} MB of uplink; {chosen} reaches {score[chosen]:.3f} with "
        f"{share[chosen]:.1%} of that. Control variates in full reach {score[CONTROL]:.3f}.",
        value=share[chosen],
        n=sum(map(len, federation.held)),
        range=(0.0, float("inf")),
        direction="lower",
        rows=tuple(
            {"arm": a, "accuracy": score[a], "megabytes up": sent[a], "of plain": share[a]}
            for a in ARMS
        ),
        drawn=curves("Accuracy against what clients sent", points, x, ACCURACY, by="arm"),
        facts={"clients": str(len(federation.clients)), "parameters": str(size)}
        | groups_told(groups[inputs.source_rows]),
        advice=(
            f"Chosen is what sends least among what is at most {WORSE:.0%} worse than plain "
            "averaging. Bytes are those of the coded streams; the downlink is not counted.",
        ),
    )
