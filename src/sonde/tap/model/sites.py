"""Resolve a user's patterns (``layers.*.mlp``, ``blocks``, ``blocks.3``) to sites."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase

from torch import nn

from sonde.core.errors import SiteError, near
from sonde.core.left_out import LeftOut
from sonde.core.site import ATTENTION_PORTS, WEIGHT, Site
from sonde.tap.attention.places import attention_at, attentions_at
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.model.blocks import block_paths, has_float
from sonde.tap.model.probe import Probe, executed

AUTO = "auto"
BLOCKS = "blocks"
LOGITS = "logits"
ENTRY = "entry"
MOST_LEAVES = 64
SHOWN = 8
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
SILENT = (nn.Dropout, nn.Identity, nn.modules.dropout._DropoutNd)

Pattern = str | Site


def resolve(
    module: nn.Module, patterns: Pattern | Iterable[Pattern], probe: Probe | None = None
) -> list[Site]:
    """Return the sites that patterns name, in order of execution.

    A pattern is a path, any dotted suffix that names one module, a path with ``*`` or negative
    indices for whole segments, ``blocks``, ``blocks.3`` for the fourth of them, or ``logits`` for
    the module whose output is the logits (or the model itself); ``@call``, ``:port`` and ``.key``
    may follow. ``auto`` stands for the
    sites that are read by default.

    Parameters
    ----------
    module : nn.Module
        Module whose sites are named.
    patterns : str, Site, or several
        Patterns of sites, such as ``layers.*.mlp``.
    probe : Probe or None, default=None
        Without it only the module tree is known: nothing is said about what runs.

    Raises
    ------
    SiteError
        If a pattern matches nothing (near names are listed), several modules by suffix, a module
        that never ran, or one that ran several times and no call was chosen.
    """
    several = [patterns] if isinstance(patterns, str | Site) else list(patterns)
    names = ModuleNames(module) if probe is None else probe.names
    by_text: dict[str, Site] = {}
    if weights := [str(pattern) for pattern in several if port_of(pattern) == WEIGHT]:
        raise SiteError(
            f"resolve: expected states of a forward pass, got parameters: {', '.join(weights)}. "
            "Read parameters in a call of their own, without data: sonde.read(model, sites=...). "
            "Change them with sonde.weights."
        )
    for pattern in several:
        for site in _sites_of(pattern, names, probe):
            by_text.setdefault(str(site), site)
    if not by_text:
        raise SiteError("resolve: expected at least one site, got none. Try sites='blocks'.")
    return sorted(by_text.values()) if probe is not None else list(by_text.values())


def places_of(pattern: Pattern, names: ModuleNames) -> list[Site]:
    """Return the sites of the modules that a pattern names, including modules that do not run."""
    return _sites_of(pattern, names, None)


def port_of(pattern: Pattern) -> str:
    """Return the port that a pattern names, with or without a reducer after it."""
    if isinstance(pattern, str):
        pattern = Site.parse(pattern.partition("|")[0])
    return pattern.port


def _sites_of(pattern: Pattern, names: ModuleNames, probe: Probe | None) -> list[Site]:
    site = Site.parse(pattern) if isinstance(pattern, str) else pattern
    if pattern == AUTO and probe is not None:
        return default_sites(probe)
    is_list = isinstance(names.modules.get(BLOCKS), nn.ModuleList | nn.ModuleDict) or (
        probe is not None and not probe.calls(BLOCKS)  # a list that never runs itself
    )
    if site.path == BLOCKS and (BLOCKS not in names.modules or is_list):
        every = block_paths(names, probe)
        if not every:
            raise SiteError(f"resolve: this model has no list of blocks. {_instead(names)}")
        chosen = [replace(site, path=path) for path in every]
        is_open = site.call is None
    elif site.path == LOGITS and probe is not None and LOGITS not in names.modules:
        chosen, is_open = [_logits_site(site, probe)], False
    else:
        path = _numbered(site.path, names, probe)
        chosen = [replace(site, path=path) for path in match(path, names)]
        is_open = False
    if site.port in ATTENTION_PORTS:
        chosen = _at_attentions(chosen, names)
    if probe is None:
        return chosen
    return [s for one in chosen for s in _executed_sites(one, probe, every_call=is_open)]


def _numbered(path: str, names: ModuleNames, probe: Probe | None) -> str:
    """Return ``blocks.3.mlp`` as a path of this model, unless a module has exactly that name."""
    first, *rest = path.split(".")
    if first != BLOCKS or BLOCKS in names.modules or not rest or not _is_number(rest[0]):
        return path
    every, number = block_paths(names, probe), int(rest[0])
    if not -len(every) <= number < len(every):
        raise SiteError(
            f"resolve: {path!r}: this model has {len(every)} blocks. Write blocks.0 to "
            f"blocks.{len(every) - 1}, or the name of a module."
            if every
            else f"resolve: {path!r}: this model has no list of blocks. {_instead(names)}"
        )
    return ".".join([every[number], *rest[1:]])


def _instead(names: ModuleNames) -> str:
    """Return what to write for a model without blocks."""
    every = ", ".join([name for name in names.modules if name][:SHOWN])
    return f"Name modules instead, such as {every}, or leave out the sites."


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdigit()


def _at_attentions(sites: list[Site], names: ModuleNames) -> list[Site]:
    """Return the attention layers inside modules; skip modules without any if several are given."""
    attending = [s for s in sites if len(sites) == 1 or attentions_at(s.path, names)] or sites[:1]
    return [replace(s, path=attention_at(s.path, s.port, names)) for s in attending]


def _logits_site(site: Site, probe: Probe) -> Site:
    if probe.head is not None:
        return replace(site, path=probe.head)
    if site.port == "out" and site.key is None and "logits" in probe.output:
        return replace(site, path="", key="logits")
    raise SiteError(
        f"resolve: {str(site)!r}: no linear layer of this model returns its logits. "
        "Name the module."
    )


def _executed_sites(site: Site, probe: Probe, *, every_call: bool) -> list[Site]:
    calls = probe.calls(site.path)
    if calls == 0:
        module = probe.names.modules[site.path]
        raise SiteError(
            f"Site: {site.path!r} ({type(module).__name__}) did not run in the probe forward "
            f"pass{_why_silent(module)}. Read a module that "
            f"runs{_running_children(site.path, probe)}."
        )
    if site.call is None and calls > 1:
        if every_call:
            numbered = [replace(site, call=c) for c in range(calls)]
            return [s for one in numbered for s in _executed_sites(one, probe, every_call=False)]
        raise SiteError(
            f"Site: {site.path!r} is called {calls} times in one forward pass; write "
            f"{site.path}@0 to @{calls - 1}, @last or @all."
        )
    if isinstance(site.call, int) and site.call >= calls:
        raise SiteError(
            f"Site: {site.path!r} is called {calls} times in one forward pass, got @{site.call}. "
            f"Write @0 to @{calls - 1}."
        )
    call = last_call(site, calls)
    probe.leaf(site.path, call, site.port, site.key)
    return [replace(site, order=probe.order(site.path, call, site.port))]


def last_call(site: Site, calls: int) -> int:
    """Return the index of the call after which a site is complete."""
    return site.call if isinstance(site.call, int) else calls - 1


def _why_silent(module: nn.Module) -> str:
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return ": a list of modules is never called itself"
    return ": its weights may be used by a function, or its branch was not taken"


def _running_children(path: str, probe: Probe) -> str:
    running = [c for c in probe.names.children(path) if probe.calls(c)][:SHOWN]
    return f", such as {', '.join(running)}" if running else ""


def match(pattern: str, names: ModuleNames) -> list[str]:
    """Return the canonical paths of the modules that a path pattern names."""
    modules = names.modules
    if pattern in modules:
        return [_canonical(pattern, names)]
    if pattern in names.raw:
        return [names.raw[pattern]]
    parts = pattern.split(".")
    is_glob = any("*" in p or "?" in p or p.startswith("-") for p in parts)
    anchored = [n for n in modules if _fits(n.split("."), parts, 0, names)]
    if anchored:
        return list(dict.fromkeys(_canonical(n, names) for n in anchored))
    suffixed = [
        n for n in modules if _fits(n.split("."), parts, n.count(".") + 1 - len(parts), names)
    ]
    by_start: dict[str, list[str]] = {}
    for name in suffixed:
        start = name.rsplit(".", len(parts))[0] if name.count(".") >= len(parts) else ""
        by_start.setdefault(start, []).append(_canonical(name, names))
    distinct = list(dict.fromkeys(c for group in by_start.values() for c in group))
    if len(distinct) == 1 or (is_glob and len(by_start) == 1):
        return distinct
    if distinct:
        shown = ", ".join(distinct[:SHOWN]) + (", ..." if len(distinct) > SHOWN else "")
        raise SiteError(
            f"resolve: {pattern!r} names {len(distinct)} modules: {shown}. Give a longer part of "
            "the path."
        )
    raise SiteError(f"resolve: expected a module, got {pattern!r}.{_near(pattern, names)}")


def _near(pattern: str, names: ModuleNames) -> str:
    """Return similar paths, or patterns if the pattern has a ``*``, else the existing ones."""
    paths = [n for n in names.modules if n]
    patterns = list(dict.fromkeys(_NUMBER.sub("*", n) for n in paths))
    candidates = patterns if "*" in pattern else paths
    size, last = pattern.count(".") + 1, pattern.rpartition(".")[2]
    ends = [".".join(n.split(".")[-size:]) for n in candidates]
    advice = near(pattern, candidates) or near(pattern, ends)
    alike = [p for p in patterns if "*" in p and p.rpartition(".")[2] == last]
    if not advice and "*" in pattern and alike:
        advice = f" Did you mean {', '.join(alike[:3])}?"
    return advice or f" Patterns here: {', '.join(patterns[:SHOWN])}."


def _canonical(name: str, names: ModuleNames) -> str:
    return names.canonical[id(names.modules[name])]


def _fits(name: list[str], parts: list[str], start: int, names: ModuleNames) -> bool:
    if start < 0 or len(name) - start != len(parts):
        return False
    for i, part in enumerate(parts):
        segment = name[start + i]
        if part.startswith("-") and part[1:].isdigit():
            siblings = names.children(".".join(name[: start + i]))
            if not segment.isdigit() or int(segment) != len(siblings) + int(part):
                return False
        elif not fnmatchcase(segment, part):
            return False
    return True


def default_sites(probe: Probe) -> list[Site]:
    """Return the sites that are read if the user names no site.

    The blocks; without any, up to 64 modules with a floating-point output and no part that ran. Of
    more such modules those with parameters are taken, evenly spaced in the order of execution.
    """
    paths = block_paths(probe.names, probe)
    leaves = [] if paths else _spaced_leaves(probe)
    if not paths and not leaves:
        raise SiteError(
            "sites='auto': expected a list of blocks or modules that return a floating-point "
            "tensor, got none. Name the sites to read (--sites)."
        )
    sites = [s for p in paths or leaves for s in _executed_sites(Site(p), probe, every_call=True)]
    return sorted(sites)


def leaf_sites(probe: Probe) -> list[Site]:
    """Return the sites to read if no block can be read: modules none of whose parts ran."""
    leaves = _spaced_leaves(probe)
    return sorted(s for p in leaves for s in _executed_sites(Site(p), probe, every_call=True))


def _spaced_leaves(probe: Probe) -> list[str]:
    """Return up to 64 leaves: all of them, or those with parameters, evenly spaced to the last."""
    leaves = _leaves(probe)
    if len(leaves) <= MOST_LEAVES:
        return leaves
    modules = probe.names.modules
    weighted = [p for p in leaves if next(modules[p].parameters(), None) is not None]
    chosen = weighted or leaves
    n = min(len(chosen), MOST_LEAVES)
    return [chosen[round(k * (len(chosen) - 1) / (n - 1))] for k in range(n)] if n > 1 else chosen


def outputs_left_out(site: Site, probe: Probe) -> Iterator[LeftOut]:
    """Yield the outputs not read if a site names no key: all except the first."""
    if site.port != "out" or site.key is not None or site.path not in probe.trace:
        return
    call = probe.trace[site.path][last_call(site, probe.calls(site.path))]
    floats = [key for key, x in call.outputs.items() if x.dtype.is_floating_point]
    for key in floats[1:]:
        reason = f"the module returns {len(floats)} outputs, and the first, {floats[0]!r}, is read."
        yield LeftOut(str(replace(site, key=key)), reason)


def _leaves(probe: Probe) -> list[str]:
    """Return the modules that ran without any of their parts, in order of execution.

    A part that only a function uses (the weights of an attention) is not seen to run.
    """
    modules = probe.names.modules
    ran = [p for p in executed(probe) if not isinstance(modules[p], SILENT) and has_float(p, probe)]
    around = {outer for path in ran for outer in _around(path)}
    return [path for path in ran if path not in around]


def _around(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:k]) for k in range(len(parts))] if path else []


def unheard(probe: Probe, read: Iterable[Site]) -> Iterator[LeftOut]:
    """Yield the layers that would also be read if they ran and returned floats.

    They stand beside a block and have its class. If leaves are read, they are the other leaves with
    parameters, except leaves inside a module that is read.
    """
    read = list(read)
    for site in read:
        yield from outputs_left_out(site, probe)
    names, chosen = probe.names, {site.path for site in read}
    blocks = set(block_paths(names, probe))
    if chosen and not blocks and len(leaves := _leaves(probe)) > MOST_LEAVES:
        how_many = f"{len(chosen)} of {len(leaves)} modules are read, evenly spaced"
        yield LeftOut("auto", f"{how_many}. Name others to read them (--sites).")
    kinds = {(path.rpartition(".")[0], type(names.modules[path])) for path in blocks}
    for path, module in names.primary() if chosen else ():
        if path in probe.trace and has_float(path, probe):
            continue
        if blocks and (path.rpartition(".")[0], type(module)) not in kinds:
            continue
        is_leaf = not names.children(path) and next(module.parameters(), None) is not None
        if blocks or (is_leaf and not chosen.intersection(_around(path)[1:])):
            silent = f"did not run{_why_silent(module)}"
            reason = "returned no floating-point tensor" if path in probe.trace else silent
            yield LeftOut(str(Site(path)), f"{reason}.")
