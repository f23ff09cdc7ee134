"""What a compression gained and cost, as text for a terminal."""

from typing import Any

from sonde.report._format import number, plural, share, shown

MIB = 2**20


def compress_verdict(found: dict[str, Any]) -> str:
    """Return in one sentence what was gained and what was not, and how many answers changed.

    Parameters
    ----------
    found : dict
        JSON of a compression, ``sonde-compress/1``.
    """
    gains = [
        f"{what} {_times(found[key][0], found[key][1], 'smaller', 'larger')}"
        for what, key in (("files", "bytes"), ("memory", "memory"))
    ]
    gains += [
        f"{one['what']} {_times(one['before'][0], one['after'][0], 'as fast', 'as slow')}"
        for one in found["times"]
    ]
    told = found["fidelity"]
    return f"{', '.join(gains)}; the answer changed on {share(told['changed'])} of {told['n']:,}"


def compress_to_text(found: dict[str, Any]) -> str:
    """Return the verdict and a line for each kind of figure."""
    told, disk, memory = found["fidelity"], found["bytes"], found["memory"]
    lines = [
        compress_verdict(found),
        f"method   {shown(found['method'])}, {plural(found['layers'], 'layer')}, calibrated on "
        f"{plural(found['calibrated_on'], 'example')}, compared on {found['compared_on']:,} others",
        f"bytes    {mib(disk[0])} -> {mib(disk[1])} of weights on disk, {mib(memory[0])} -> "
        f"{mib(memory[1])} in memory",
        f"kept     {kept_sentence(found)}",
        f"answers  KL {number(told['kl'])} nats in the mean ({interval_words(told)}), "
        f"{number(told['kl_99'])} at the 99 % quantile; {share(told['right_to_wrong'])} right to "
        f"wrong, {share(told['wrong_to_right'])} wrong to right",
    ]
    if found["sites"]:
        worst = max(found["sites"], key=lambda site: site["error"] or 0.0)
        lines.append(
            f"inside   most at {shown(worst['site'], 60)}: error {share(worst['error'])} of the "
            f"states' squares, cosine {number(worst['cosine'])}, CKA {number(worst['cka'])}"
        )
    lines += [f"time     {time_words(one)}" for one in found["times"]]
    lines += [f"tried    {tried_words(one)}" for one in found["tried"]]
    lines.append(
        f"kernels  {', '.join(found['kernels'])} on this machine; a layer holds the faster form"
    )
    return "\n".join(lines)


def mib(n_bytes: int) -> str:
    """Return bytes in MiB."""
    return f"{n_bytes / MIB:.2f} MiB"


def interval_words(told: dict[str, Any]) -> str:
    """Return the 95 % interval of the mean divergence."""
    if told["kl_low"] is None or told["kl_high"] is None:
        return "no interval: one group of examples"
    return f"95 % interval {number(told['kl_low'])} to {number(told['kl_high'])}"


def kept_sentence(found: dict[str, Any]) -> str:
    """Return which modules kept their size."""
    kept = found["kept"]
    total = mib(sum(one["bytes"] for one in kept))
    named = ", ".join(f"{shown(one['layer'], 60)} ({one['kind']})" for one in kept[:3])
    more = f" and {len(kept) - 3} more" if len(kept) > 3 else ""
    return f"{total} in memory were not packed: {named}{more}" if kept else "nothing: all is packed"


def time_words(one: dict[str, Any]) -> str:
    """Return the seconds of both models."""
    both = " -> ".join(
        f"{1e3 * m:.3g} ms ({1e3 * low:.3g} to {1e3 * high:.3g})"
        for m, low, high in (one["before"], one["after"])
    )
    threads = plural(one["threads"], "thread")
    return f"{one['what']}: {both}, {one['runs']} runs of each in turn, {threads}"


def tried_words(one: dict[str, Any]) -> str:
    """Return a setting that a search tried."""
    how = f"{one['bits']} bits, groups of {one['group']}, {one['method']}"
    return f"{how}: about {mib(one['bytes'])}, KL {number(one['kl'])}"


def _times(before: float, after: float, gain: str, loss: str) -> str:
    ratio = before / max(after, 1e-12)
    if 0.95 <= ratio <= 1.05:
        return "as before"
    return f"{ratio:.1f} x {gain}" if ratio > 1 else f"{1 / ratio:.1f} x {loss}"
