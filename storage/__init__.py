"""storage knows bytes: row encodings, the Zarr store, its manifest and the ledger. No Ray."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

_MODULES = {
    "ApproximatorStore": "store",
    "BlockFacts": "facts",
    "Damage": "verification",
    "StoreFacts": "facts",
    "StoreSpec": "layout",
    "SumGrid": "summation",
    "verify_store": "verification",
}


def __getattr__(name: str) -> object:
    """Import on first use: a name of a unit is checked without opening a store."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
