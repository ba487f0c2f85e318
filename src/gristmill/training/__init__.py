"""One step: its mathematics, the optimizer, and where arrays lie on devices."""
