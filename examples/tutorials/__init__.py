"""What a reader opens first: each script shows one thing, on data that needs no download."""
