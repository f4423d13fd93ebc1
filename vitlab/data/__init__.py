"""Images in, batches out: sources, samplers, loaders."""
