"""Marginals: transforms that take the distribution of every feature to a standard normal."""

from flowplug.marginal._histogram import HistogramGaussianization as HistogramGaussianization
