"""Sites that rules cannot judge: sites with few inputs, and means over images."""

import itertools

from sonde.findings.evidence.modules.module_facts import read_modules, site_facts
from sonde.findings.evidence.record import Evidence, SiteEvidence
from sonde.stats import MomentsState


def fed_by_few(evidence: Evidence, n: int) -> set[str]:
    """Return the names of sites whose output depends on fewer than ``n`` numbers per example.

    All sites, if the model's input has fewer numbers. Else linear layers that read fewer numbers
    for a row or point, and sites that directly follow such a layer or a site narrower than ``n``.
    """
    model = evidence.get(read_modules)
    if model is None:
        return set()
    if model.n_numbers is not None and model.n_numbers < n:
        return {site.name for site in evidence.sites}
    names: set[str] = set()
    for before, site in itertools.pairwise((None, *evidence.sites)):
        facts = model.sites.get(site.schema.key) if site else None
        if not (site and facts):
            continue
        is_narrow = facts.n_inputs is not None and facts.n_inputs < n
        if is_narrow or (facts.follows and before and (before.dim < n or before.name in names)):
            names.add(site.name)
    return names


def is_input(site: SiteEvidence, evidence: Evidence) -> bool:
    """Return whether a site holds the model's input rather than a state of the model."""
    own = site_facts(evidence).get(site.schema.key)
    return site.schema.site.port == "in" or (own is not None and own.is_input)


def of_few_channels(evidence: Evidence, n: int) -> set[str]:
    """Return the names of convolutions that read fewer than ``n`` channels.

    Neighbouring pixels are much alike, so all filters of a smooth image say how bright it is.
    """
    facts = site_facts(evidence)
    channels = {s.name: f.n_channels for s in evidence.sites if (f := facts.get(s.schema.key))}
    return {name for name, count in channels.items() if count is not None and count < n}


def of_positions(site: SiteEvidence) -> MomentsState | None:
    """Return moments over single positions, if a module slides over images or signals.

    A mean over positions can hide what units tell: with a single input channel it says how bright
    the image is, whatever the filter. None for other modules, or if only variances are known.
    """
    eighth = site.all.eighth if slides(site) else None
    return None if eighth is None or eighth.scatter.ndim == 1 else eighth


def slides(site: SiteEvidence) -> bool:
    """Return whether a module slides over images or signals."""
    words = site.schema.axes.split()
    return len(words) > 2 and (len(words) > 3 or words[1] == "dim")


def means_alone(site: SiteEvidence) -> bool:
    """Return whether only means over positions are known, as for stored means."""
    return slides(site) and site.all.eighth is None and site.schema.reducer.name == "mean"
