"""Chains of operations modulo a number, with worked solutions."""

from dataclasses import dataclass

import numpy as np

SIGNS, EQUAL, AND, OPEN, CLOSE, STOP = "+-*", "=", ",", "<", ">", "."
WORDS = [*"0123456789", *SIGNS, EQUAL, AND, OPEN, CLOSE, STOP]


@dataclass(frozen=True)
class Chains:
    """Chains of operations modulo a number, solved step by step from left to right.

    Parameters
    ----------
    modulus : int
    least, most : int
        Operations of a chain; at least one.
    fit, test : int
        Prompts whose traces are the experience, and others.
    """

    modulus: int = 7
    least: int = 1
    most: int = 6
    fit: int = 300
    test: int = 150

    def text(self, draw: np.random.Generator) -> str:
        """Return a prompt with the correct trace and answer."""
        n = int(draw.integers(self.least, self.most + 1))
        values, signs = draw.integers(self.modulus, size=n + 1), draw.choice(list(SIGNS), n)
        value, lines = int(values[0]), list[str]()
        for sign, other in zip(signs, values[1:], strict=True):
            new = {"+": value + other, "-": value - other, "*": value * other}[sign]
            lines.append(f"{value}{sign}{other}{EQUAL}{new % self.modulus}")
            value = int(new % self.modulus)
        prompt = "".join(f"{s}{v}" for s, v in zip(["", *signs], values, strict=True))
        return f"{prompt}{EQUAL}{OPEN}{AND.join(lines)}{CLOSE}{value}{STOP}"

    def prompts(self, n: int, draw: np.random.Generator) -> dict[str, str]:
        """Return different prompts with their correct answers."""
        found: dict[str, str] = {}
        while len(found) < n:
            prompt, _, rest = self.text(draw).partition(OPEN)
            found[prompt + OPEN] = rest.partition(CLOSE)[2]
        return found
