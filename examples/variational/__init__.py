"""Reverse KL on targets of known normaliser: targets, models, training, measurements, what is reported."""
