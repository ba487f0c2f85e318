"""One module, one command: each `run(job, context)` reads manifests, writes files, and commits its own manifest last."""
