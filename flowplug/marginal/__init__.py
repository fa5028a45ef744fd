"""Transforms of each feature alone that start from the shape of its distribution."""

from flowplug.marginal._gaussianization import MarginalGaussianization as MarginalGaussianization
from flowplug.marginal._histogram import HistogramGaussianization as HistogramGaussianization
