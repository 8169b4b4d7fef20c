"""Scripts that start inference servers; they depend on the run file's schema and the rollout records only."""
