"""The ledger of a run: deletion requests, releases and the privacy that they spent.

A request is accepted, batched, committed, done; until it is batched it may be cancelled. A batch,
which becomes the release of the same number, is open, committed, published, erased. One transaction
commits: its requests are applied, the release exists, its privacy is spent and its units are
suppressed, all or nothing. SQLite in WAL mode with `synchronous=FULL` makes a returned call durable;
`secure_delete` overwrites what is removed. The ledger decides nothing about mathematics or files:
`pipeline.deletion` does.

One process at a time: the caller holds `storage.run_lock.RunLock`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from storage.durable_write import Faults, no_faults, write_atomically
from storage.errors import LedgerError
from storage.ledger_check import first_difference, seal_of
from storage.ledger_file import LedgerFile, text_digest
from storage.ledger_records import (
    LEDGER_VERSION,
    BatchState,
    ReleaseRecord,
    RequestRecord,
    Retraining,
    canonical,
)
from storage.ledger_requests import LedgerRequests, unit_set_digest
from storage.ledger_summary import RETRAINING, read_retraining


def seal_path(path: Path) -> Path:
    """Return where the seal of a ledger lies."""
    return path.with_suffix(".seal")


def _is_sealed(path: Path, seal: Callable[[str], str]) -> bool:
    """Whether a ledger is as its last holder closed it."""
    try:
        recorded = seal_path(path).read_bytes()
    except OSError:
        return False
    digest = seal_of(path)
    return digest is not None and recorded == seal(digest).encode()


class Ledger:
    """The ledger of one run, opened for writing.

    Args:
        path: The SQLite file; created where there is none.
        run_digest: Digest of the trajectory the ledger belongs to.
        key_check: `PseudonymKey.check_value()` of the key its pseudonyms are made with.
        seal: `PseudonymKey.seal`; without it the whole ledger is checked at every opening.
        faults: Called with the name of each crash point as it is passed.

    Attributes:
        file: The file underneath, with the chain of entries.
        requests: The requests in it.

    Raises:
        LedgerError: The file is no ledger, of another version, of another run or another key.
    """

    def __init__(
        self,
        path: Path,
        run_digest: str,
        key_check: str,
        faults: Faults = no_faults,
        seal: Callable[[str], str] | None = None,
    ) -> None:
        identity = {
            "version": str(LEDGER_VERSION),
            "run_digest": run_digest,
            "key_check": key_check,
        }
        self._seal = seal
        if seal_path(path).exists() and not seal_path(path).is_file():
            raise LedgerError(f"{seal_path(path)} is no file; move it away, and repeat the command")
        sealed = seal is not None and _is_sealed(path, seal)
        self.file = LedgerFile(path, identity, faults)
        self.requests = LedgerRequests(self.file)
        if not sealed:
            self._refuse_changed()

    def _refuse_changed(self) -> None:
        try:
            found = first_difference(self.file)
        except BaseException:
            self.file.close()
            raise
        if found is not None:
            self.file.close()
            raise LedgerError(
                f"{self.file.path}: {found}; restore a backup with `unlearn restore`: nothing is "
                "decided by a ledger that was changed"
            )

    def close(self) -> None:
        """Close the file and seal it; closing twice does nothing."""
        self.file.close()
        digest = None if self._seal is None else seal_of(self.file.path)
        if digest is not None and self._seal is not None:
            content = self._seal(digest).encode()
            path = seal_path(self.file.path)
            if not path.is_file() or path.read_bytes() != content:
                write_atomically(path, content, mode=0o600)

    # --- the life of a batch --------------------------------------------------------------------

    def begin_batch(self, requests: Sequence[RequestRecord]) -> int:
        """Put accepted requests into a new batch and return its number."""
        with self.file.transaction("batch"):
            number = self._open_batch(requests)
            self.file.append(
                "batched", {"release": number, "requests": [r.request for r in requests]}
            )
        return number

    def _open_batch(self, requests: Sequence[RequestRecord]) -> int:
        if self.unfinished() is not None:
            raise LedgerError("a batch is under way; recover it before beginning another")
        last = self.last_release()
        number = 1 if last is None else last.release + 1
        self.file.run("INSERT INTO batches VALUES (?, 'open')", (number,))
        self.file.run_many(
            "UPDATE requests SET state = 'batched', release = ? WHERE request = ?",
            ((number, request.request) for request in requests),
        )
        return number

    def begin_retraining(
        self,
        requests: Sequence[RequestRecord],
        generation: int,
        model_before: str,
        *,
        final: bool = False,
    ) -> Retraining:
        """Put accepted requests into the batch of a retraining, which stays open while it trains.

        Args:
            requests: All that wait, possibly none: what was deleted before is left out as well.
            generation: Of the model to be trained.
            model_before: Digest of the model's file before it.
            final: Whether no approximators are computed for it.
        """
        with self.file.transaction("retraining"):
            release = self._open_batch(requests)
            retraining = Retraining(release, generation, final, model_before)
            body = asdict(retraining)
            self.file.set_value(RETRAINING, canonical(body))
            numbers = [request.request for request in requests]
            self.file.append(RETRAINING, {**body, "requests": numbers})
        return retraining

    def retraining(self) -> Retraining | None:
        """Return the retraining that is under way, or None."""
        return read_retraining(self.file.value(RETRAINING))

    def roll_back(self, release: int) -> None:
        """Take back a batch that was not committed; its requests wait again."""
        with self.file.transaction("roll-back"):
            self._expect_batch(release, "open")
            self.file.run(
                "UPDATE requests SET state = 'accepted', release = NULL WHERE release = ?",
                (release,),
            )
            self.file.run("DELETE FROM batches WHERE release = ?", (release,))
            self.file.remove_value(RETRAINING)
            self.file.append("rolled-back", {"release": release})

    def commit(self, record: ReleaseRecord) -> None:
        """Apply a batch: the one transaction that decides."""
        with self.file.transaction("commit"):
            self._expect_batch(record.release, "open")
            self.file.run(
                "INSERT INTO suppressed SELECT unit, request, ? FROM request_units "
                "WHERE request IN (SELECT request FROM requests WHERE release = ?)",
                (record.release, record.release),
            )
            self.file.run(
                "DELETE FROM request_units WHERE request IN "
                "(SELECT request FROM requests WHERE release = ?)",
                (record.release,),
            )
            self.file.run(
                "UPDATE requests SET state = 'committed' WHERE release = ?", (record.release,)
            )
            body = record.body()
            self.file.run("INSERT INTO releases VALUES (?, ?)", (record.release, canonical(body)))
            self._set_batch(record.release, "committed")
            self.file.remove_value(RETRAINING)
            units = unit_set_digest(self.units_of(record.release))
            self.file.append("committed", {**body, "units": units})

    def mark_published(self, release: int) -> None:
        """Record that the release stands in its place."""
        with self.file.transaction("publish"):
            self._expect_batch(release, "committed")
            self._set_batch(release, "published")
            self.file.append("published", {"release": release})

    def finish(
        self, release: int, receipts: Sequence[tuple[int, str]], *, recovered: bool = False
    ) -> None:
        """Record that the rows are erased, with the receipt (JSON) of each request.

        Args:
            release: The batch.
            receipts: Number and receipt of each of its requests.
            recovered: Whether a crash had cut it short, so that no client was given these receipts.
        """
        with self.file.transaction("finish"):
            self._expect_batch(release, "published")
            self._set_batch(release, "erased")
            self.file.run_many(
                "UPDATE requests SET state = 'done', receipt = ? WHERE request = ?",
                ((receipt, request) for request, receipt in receipts),
            )
            digests = [[request, text_digest(receipt)] for request, receipt in receipts]
            body: dict[str, object] = {"release": release, "receipts": digests}
            if recovered:
                body["recovered"] = True
                self._set_unanswered([*self.unanswered(), release])
            self.file.append("erased", body)

    def unanswered(self) -> list[int]:
        """Return the releases completed after a crash whose receipts were not given to a client yet."""
        return list(json.loads(self.file.value("unanswered") or "[]"))

    def mark_answered(self, release: int) -> None:
        """Record that a client has been told of a release that was completed after a crash."""
        with self.file.transaction("answer"):
            self._set_unanswered([each for each in self.unanswered() if each != release])
            self.file.append("answered", {"release": release})

    def _set_unanswered(self, releases: Sequence[int]) -> None:
        self.file.set_value("unanswered", json.dumps(list(releases)))

    def unfinished(self) -> tuple[int, BatchState] | None:
        """Return the batch that is under way and its state, or None."""
        found = self.file.rows("SELECT release, state FROM batches WHERE state != 'erased'")
        return (int(found[0][0]), found[0][1]) if found else None

    def _expect_batch(self, release: int, state: BatchState) -> None:
        if self.unfinished() != (release, state):
            raise LedgerError(
                f"expected batch {release} to be {state}, found {self.unfinished()}; "
                "open the run again, which recovers it"
            )

    def _set_batch(self, release: int, state: BatchState) -> None:
        self.file.run("UPDATE batches SET state = ? WHERE release = ?", (state, release))

    # --- declarations ---------------------------------------------------------------------------

    def declare(self, generation: int, digest: str) -> None:
        """Bind a generation of the run to the digest of what it declares.

        Raises:
            LedgerError: Something else was declared, and requests have arrived since.
        """
        name = f"declaration-{generation}"
        found = self.file.value(name)
        if found == digest:
            return
        with self.file.transaction("declare"):
            if found is not None and self._has_requests(generation):
                raise LedgerError(
                    f"{self.file.path}: sensitivities and budget were declared before requests "
                    "arrived, and have changed since; open the run with what was declared, or "
                    "retrain"
                )
            self._set_declaration(generation, digest)

    def redeclare(self, generation: int, digest: str) -> None:
        """Bind a generation to what it declares after a change that was made on purpose."""
        if self.file.value(f"declaration-{generation}") not in (None, digest):
            with self.file.transaction("declare"):
                self._set_declaration(generation, digest)

    def _set_declaration(self, generation: int, digest: str) -> None:
        self.file.set_value(f"declaration-{generation}", digest)
        self.file.append("declared", {"generation": generation, "digest": digest})

    def settings(self) -> str | None:
        """Return the canonical text of the settings that the ledger is bound to, or None."""
        return self.file.value("settings")

    def bind(self, settings: str) -> None:
        """Bind the ledger to the settings that decide releases; a bound one stays as it is."""
        if self.settings() is None:
            self._set_settings("bound", settings)

    def configure(self, settings: str) -> None:
        """Record that settings were changed on purpose."""
        self._set_settings("configured", settings)

    def _set_settings(self, kind: str, settings: str) -> None:
        with self.file.transaction(kind):
            self.file.set_value("settings", settings)
            self.file.append(kind, {"settings": settings})

    def mark_pruned(self) -> None:
        """Record that what further deletions need is about to be removed."""
        with self.file.transaction("prune"):
            self.file.set_value("pruned", "yes")
            self.file.append("pruned", {})

    def is_pruned(self) -> bool:
        """Return whether `mark_pruned` was called."""
        return self.file.value("pruned") is not None

    def record_replay(self, num_units: int) -> None:
        """Record that rows which had come back were erased again."""
        with self.file.transaction("replay"):
            self.file.append("replayed", {"num_units": num_units})

    def _has_requests(self, generation: int) -> bool:
        waiting = self.file.rows(
            "SELECT 1 FROM requests WHERE state NOT IN ('done', 'cancelled') LIMIT 1"
        )
        last = self.last_release()
        return bool(waiting) or (last is not None and last.generation >= generation)

    # --- what is known --------------------------------------------------------------------------

    def units_of(self, release: int) -> list[str]:
        """Return the pseudonyms of a batch, ascending, before and after its commit."""
        rows = self.file.rows(
            "SELECT unit FROM suppressed WHERE release = ?1 UNION SELECT unit FROM request_units "
            "WHERE request IN (SELECT request FROM requests WHERE release = ?1) ORDER BY unit",
            (release,),
        )
        return [unit for (unit,) in rows]

    def suppressed(self) -> list[str]:
        """Return the pseudonym of every deleted unit, ascending."""
        return [u for (u,) in self.file.rows("SELECT unit FROM suppressed ORDER BY unit")]

    def num_suppressed(self) -> int:
        """Return how many units are deleted."""
        return int(self.file.rows("SELECT count(*) FROM suppressed")[0][0])

    def entry_digest(self, kind: str, release: int) -> str:
        """Return the digest of the entry of this kind about a release; empty where there is none."""
        rows = self.file.rows(
            "SELECT digest FROM entries WHERE kind = ? AND json_extract(body, '$.release') = ?",
            (kind, release),
        )
        return str(rows[-1][0]) if rows else ""

    def receipt_digests(self, release: int) -> list[list[object]]:
        """Return [request, digest of its receipt] for each answered request of a release."""
        requests = self.requests.of_release(release)
        return [[r.request, text_digest(r.receipt)] for r in requests if r.receipt is not None]

    def last_release(self) -> ReleaseRecord | None:
        """Return the newest committed release, or None."""
        rows = self.file.rows("SELECT record FROM releases ORDER BY release DESC LIMIT 1")
        return ReleaseRecord.read(rows[0][0]) if rows else None

    def releases(self) -> list[ReleaseRecord]:
        """Return every committed release, oldest first."""
        rows = self.file.rows("SELECT record FROM releases ORDER BY release")
        return [ReleaseRecord.read(record) for (record,) in rows]
