"""What the examples share: one loader of tables, one training loop, one clock, one memory probe, one report."""
