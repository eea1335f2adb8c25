"""Deletions that count: requests, batches, releases, receipts; what a crash must not undo."""
