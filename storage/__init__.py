"""storage knows bytes: row encodings, the Zarr store, its manifest and the ledger. No Ray."""

from storage.facts import BlockFacts, StoreFacts
from storage.layout import StoreSpec
from storage.store import ApproximatorStore
from storage.summation import SumGrid
from storage.verification import Damage, verify_store

__all__ = [
    "ApproximatorStore",
    "BlockFacts",
    "Damage",
    "StoreFacts",
    "StoreSpec",
    "SumGrid",
    "verify_store",
]
