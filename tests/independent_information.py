"""Definitions of information and entropy, by counting in plain Python or with scipy."""

import itertools
import math
from collections import Counter

import numpy as np
from scipy.optimize import minimize
from scipy.spatial.distance import cdist
from scipy.special import digamma, xlogy
from scipy.stats import entropy


def counted_entropy(symbols):
    """Return the entropy in bits of how often each symbol occurs."""
    return entropy(list(Counter(symbols).values()), base=2)


def information_of_patterns(x, edges, label=None):
    """``H(T)`` in bits of the patterns ``T`` of bins of a row, or ``H(T) - H(T | label)``.

    A value on an edge belongs to the bin above it.
    """
    patterns = [tuple(row) for row in np.digitize(np.asarray(x), edges).tolist()]
    if label is None:
        return counted_entropy(patterns)
    label = np.asarray(label).tolist()
    both = list(zip(patterns, label, strict=True))
    return counted_entropy(patterns) + counted_entropy(label) - counted_entropy(both)


def ksg(a, b, k):
    """``psi(k) + psi(n) - mean(psi(n_x + 1) + psi(n_y + 1))`` (Kraskov et al.), row by row.

    ``n_x`` counts the rows that are nearer in ``a`` than the ``k``-th neighbour in both.
    """
    one, two = (cdist(z, z, "chebyshev") for z in (a, b))
    far = np.maximum(one, two)
    found = []
    for i, row in enumerate(far):
        radius = np.sort(np.delete(row, i))[k - 1]
        nearer = [np.sum(np.delete(d[i], i) < radius) for d in (one, two)]
        found.append(digamma(nearer[0] + 1) + digamma(nearer[1] + 1))
    return digamma(k) + digamma(len(far)) - np.mean(found)


def least_coupling_entropy(p, q):
    """Return the least entropy in bits of a joint distribution of two marginals.

    Entropy is concave, so it is least at a corner: a solution with as many cells as there are
    independent sums.
    """
    rows, columns = len(p), len(q)
    sums = np.vstack(
        [np.kron(np.eye(rows), np.ones(columns)), np.kron(np.ones(rows), np.eye(columns))]
    )
    want = np.concatenate([p, q])[:-1]
    found = []
    for cells in itertools.combinations(range(rows * columns), rows + columns - 1):
        square = sums[:-1, cells]
        if abs(np.linalg.det(square)) < 0.5:
            continue
        mass = np.linalg.solve(square, want)
        if mass.min() > -1e-12:
            found.append(entropy(mass.clip(0), base=2))
    return min(found)


def _logs(table):
    return xlogy(table, table).sum() / math.log(2)


def _conditional(table):
    """``I(Z; A | S) = H(Z, S) + H(A, S) - H(Z, A, S) - H(S)`` in bits of a table (z, a, s)."""
    ends = _logs(table.sum(1)) + _logs(table.sum(0))
    return _logs(table) + _logs(table.sum((0, 1))) - ends


def disparity_parts(table):
    """Return overall, local, unique, redundant and masked disparity in bits (Hamman and Dutta).

    The unique part is the least ``I_Q(Z; A | S)`` over tables with the marginals of ``(Z, A)``
    and ``(Z, S)``: with two values each, one number is free for each value of ``Z``.
    """
    table = np.asarray(table, dtype=float) / np.sum(table)
    turn = np.array([[1.0, -1.0], [-1.0, 1.0]])
    ends = [(-min(t[0, 0], t[1, 1]), min(t[0, 1], t[1, 0])) for t in table]

    def information(steps):
        moved = table + np.asarray(steps)[:, None, None] * turn
        return _conditional(moved.clip(0))

    start = [np.mean(end) for end in ends]
    options = {"xatol": 1e-9, "fatol": 1e-12}
    unique = minimize(information, start, method="Nelder-Mead", bounds=ends, options=options).fun
    overall, local = _conditional(table.sum(2)[:, :, None]), _conditional(table)
    return overall, local, unique, overall - unique, local - unique


def concentration(table):
    """Return ``1 - H(R_j / sum) / ln factors`` of each line, and their mean by importance (DCI)."""
    table = np.asarray(table, dtype=float)
    lines = np.array([1 - entropy(line, base=len(line)) for line in table])
    return np.average(lines, weights=table.sum(1)), lines


def modularity(information):
    """``1 - sum_f (I_f - t_f)^2 / (theta^2 (factors - 1))`` of each latent (Ridgeway and Mozer).

    All information but the largest, ``theta``, counts against a latent; lines are latents.
    """
    found = []
    for line in np.asarray(information).tolist():
        best, *rest = sorted(line, reverse=True)
        found.append(1 - sum(v * v for v in rest) / (best * best * len(rest)))
    return np.array(found)


def modular_compact(information):
    """Return mean of largest over sum, over latents and over factors (Hsu et al.).

    Each is mapped so that an even spread gives 0. Lines are factors, columns latents.
    """
    table = np.asarray(information)
    found = []
    for side in (table.T, table):
        even = 1 / side.shape[1]
        found.append((np.mean([max(line) / sum(line) for line in side]) - even) / (1 - even))
    return found


def information_gap(information):
    """Return the mean over factors of the largest less the second largest (Chen et al.)."""
    best = [sorted(line.tolist())[-2:] for line in np.asarray(information)]
    return np.mean([largest - second for second, largest in best])


def sampled_correlation(mu, variance):
    """Return the correlations of codes ``mu +- s``, each sign of each latent equally often.

    Their means and variances are those of normal codes about ``mu``.
    """
    signs = np.array(list(itertools.product([-1, 1], repeat=len(mu[0]))))
    codes = np.asarray(mu)[:, None] + signs * np.sqrt(np.asarray(variance))[:, None]
    return np.corrcoef(codes.reshape(-1, len(mu[0])), rowvar=False)


def normal_information(a, b):
    """``-ln(1 - r^2) / 2``, the information of two normal numbers with correlation ``r``."""
    return -math.log1p(-(np.corrcoef(a.ravel(), b.ravel())[0, 1] ** 2)) / 2


def normal_information_bias(n, dim, dim2):
    """By how much the information of ``n`` unrelated normal rows is estimated above 0.

    The log determinant of the scatter of ``n`` rows of ``d`` units is on average ``sum_i psi((n -
    i) / 2)`` over ``i = 1 .. d``, up to a constant for each unit (Wishart); the information is
    half of that of both sites less that of the two together.
    """
    one, two, both = (digamma((n - np.arange(1, d + 1)) / 2).sum() for d in (dim, dim2, dim + dim2))
    return (one + two - both) / 2
