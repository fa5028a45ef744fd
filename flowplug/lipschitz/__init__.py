"""Lipschitz-bounded layers and networks, their norms, and certificates."""
