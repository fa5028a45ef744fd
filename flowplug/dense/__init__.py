"""Dense flows: unconstrained square matrices, trained by the relative gradient, and invertible activations."""
