"""storage knows bytes: row encodings, the Zarr store, its manifest and the ledger. No Ray."""
