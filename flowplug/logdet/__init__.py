"""Estimators of log|det(I + J)|: one axis a file, combined by keyword."""
