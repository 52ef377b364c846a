"""How parameters are moved: the convex solver of the linear probe."""
