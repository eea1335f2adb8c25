"""The suppression list: a deleted unit stays deleted, also when an old store comes back.

The ledger knows deleted units by pseudonym alone. Only a list of names, the run's own or the
store's, and the key can say who they are.
"""

from collections.abc import Sequence

from pipeline.deletion.context import RowStore
from pipeline.deletion.staging import OpenRun
from pipeline.errors import DamagedRunError


def names_of(run: OpenRun, pseudonyms: Sequence[str]) -> dict[str, str]:
    """Return the names of pseudonyms among the units that the run was trained on.

    Units that the store has erased already, and that no list names any more, are left out.

    Raises:
        DamagedRunError: A unit is neither named by the run nor erased in the store.
    """
    wanted = set(pseudonyms)
    if not wanted:
        return {}
    found = {}
    for name in run.facts.samples_per_unit:
        pseudonym = run.key.unit(name)
        if pseudonym in wanted:
            found[pseudonym] = name
    for pseudonym in wanted - found.keys():
        if pseudonym not in run.store.erased:
            raise DamagedRunError(
                "a unit of an accepted request is no longer named by the run, and its row is not "
                "erased; open the run with the units that it was trained on"
            )
    return found


def replay_suppression(run: OpenRun) -> int:
    """Erase rows of deleted units that came back with a restored store; return how many.

    The store is asked unit by unit only when its number of erased rows differs from the ledger's.
    """
    if len(run.store.erased) == run.ledger.num_suppressed():
        return 0
    suppressed = set(run.ledger.suppressed())
    returned = [unit for unit in run.store.units if unit and run.key.unit(unit) in suppressed]
    if returned:
        for erasable in run.erasables:
            erasable.erase(returned, run.key.unit)
        run.ledger.record_replay(len(returned))
    return len(returned)


def refuse_older_ledger(run: OpenRun) -> None:
    """Refuse a ledger that is older than the store: it would bring deleted units back.

    Raises:
        DamagedRunError: The store has erased units that the ledger does not know as deleted.
    """
    num_erased = len(run.store.erased)
    if num_erased == 0:
        return
    erased = run.store.erased
    num_known = len(erased & frozenset(run.ledger.suppressed()))
    if num_erased > num_known:
        raise DamagedRunError(
            f"the store has erased {num_erased - num_known} units that the ledger does not know as "
            "deleted; restore a newer backup of the ledger, or retrain without them"
        )


def refuse_lost(store: RowStore) -> None:
    """Refuse to begin a ledger beside a store of which rows were erased already.

    Raises:
        DamagedRunError: There are such rows.
    """
    num_erased = len(store.erased)
    if num_erased:
        raise DamagedRunError(
            f"the ledger is gone, and the store has erased {num_erased} units; restore a backup of "
            "the ledger (`unlearn restore`), or retrain without them"
        )
