"""What the bytes on storage mean: paths, manifests, lineage and retention. No clock, no I/O."""
