"""``sonde.fit``, and a detector as an estimator of scikit-learn."""
