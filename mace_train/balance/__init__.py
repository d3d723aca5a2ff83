"""Which structures share one step of one GPU: costs, packers, plans, the sampler, the report."""
