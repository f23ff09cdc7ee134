"""``sonde.fit``, and the same as an estimator of scikit-learn."""
