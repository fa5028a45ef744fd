"""Solvers for the inverse of residual maps, and its derivative."""

from flowplug.solvers._anderson import Anderson as Anderson
from flowplug.solvers._fixed_point import FixedPoint as FixedPoint
from flowplug.solvers._implicit import Solver as Solver
from flowplug.solvers._implicit import solve as solve
