"""Token ids to batches: packing, the mixture of sources, the loader and its ledger."""
