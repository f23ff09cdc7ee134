"""The handwritten digits of scikit-learn: 1,797 rows of 64 pixels, and which digit each one is."""

from sklearn.datasets import load_digits
from sklearn.utils import Bunch

from narrow import expect

_FOUND = expect(Bunch, load_digits())
DIGITS, NAMES = _FOUND.data, _FOUND.target
