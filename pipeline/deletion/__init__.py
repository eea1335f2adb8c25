"""Deletions that count: requests, releases, receipts, erasure. Needs no torch and no data."""
