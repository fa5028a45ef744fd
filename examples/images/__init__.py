"""The benchmark on images: densities, hybrid models, classifiers, memory, and what is drawn of them."""
