"""The format on storage: paths, snapshots, manifests, lineage and retention. It reads no clock."""
