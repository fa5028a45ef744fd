"""The UCI density benchmark: data, models, training and what is reported."""
