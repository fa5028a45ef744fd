"""Posterior estimation in sbi, with and without flowplug's transforms: tasks, models, training, what is reported."""
