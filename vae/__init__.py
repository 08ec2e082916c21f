"""VAE experiments on populations of runs: one XLA program trains them all."""
