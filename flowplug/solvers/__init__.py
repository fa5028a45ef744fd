"""Solvers for the inverse of residual maps, and its derivative."""
