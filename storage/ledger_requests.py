"""The requests of a ledger: accepted once under an id, found again by it.

A request's id and its units are pseudonyms. Until its batch is committed its units stand in
`request_units`, where no other request can name them; afterwards in `suppressed`, for good.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace

from storage.errors import LedgerError
from storage.ledger_file import LedgerFile
from storage.ledger_records import NewRequest, RequestRecord, accepted_error_key, canonical

COLUMNS = (
    "request, request_id, set_digest, num_units, num_samples, epsilon, delta, state, release, "
    "receipt"
)


def unit_set_digest(pseudonyms: Iterable[str]) -> str:
    """Return one digest of a set of pseudonyms, whatever their order and repetitions."""
    text = "".join(sorted(set(pseudonyms)))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class LedgerRequests:
    """The requests in a ledger's file."""

    def __init__(self, file: LedgerFile) -> None:
        self._file = file

    def accept(self, request: NewRequest) -> RequestRecord:
        """Store a request durably.

        Raises:
            LedgerError: Its id or one of its units was accepted before.
        """
        with self._file.transaction("accept"):
            cursor = self._file.run(
                "INSERT INTO requests (request_id, set_digest, num_units, num_samples, epsilon, "
                "delta, state) VALUES (?, ?, ?, ?, ?, ?, 'accepted')",
                (
                    request.request_id,
                    request.set_digest,
                    len(request.units),
                    request.num_samples,
                    request.epsilon,
                    request.delta,
                ),
            )
            number = int(cursor.lastrowid or 0)
            self._file.run_many(
                "INSERT INTO request_units VALUES (?, ?)",
                ((unit, number) for unit in sorted(request.units)),
            )
            body: dict[str, object] = {
                "request": number,
                "request_id": request.request_id,
                "set": request.set_digest,
                "units": unit_set_digest(request.units),
                "num_units": len(request.units),
                "num_samples": request.num_samples,
                "epsilon": request.epsilon,
                "delta": request.delta,
            }
            if request.received is not None:
                body["received"] = request.received
            if request.due is not None:
                body["due"] = request.due
            if request.accepted_error is not None:
                body["accepted_error"] = request.accepted_error
                accepted = canonical({"error": request.accepted_error})
                self._file.set_value(accepted_error_key(number), accepted)
            self._file.append("accepted", body)
        return self.get(number)

    def withdraw(self, request: int) -> None:
        """Forget a waiting request that was answered with an error; its id is free again."""
        with self._file.transaction("withdraw"):
            deleted = self._file.run(
                "DELETE FROM requests WHERE request = ? AND state = 'accepted'", (request,)
            )
            if deleted.rowcount != 1:
                raise LedgerError(f"request {request} does not wait; it cannot be withdrawn")
            self._file.run("DELETE FROM request_units WHERE request = ?", (request,))
            self._file.remove_value(accepted_error_key(request))
            self._file.append("withdrawn", {"request": request})

    def cancel(self, request: int) -> None:
        """Take back a waiting request at its client's wish: its id stays taken, its units are free.

        Raises:
            LedgerError: It does not wait.
        """
        with self._file.transaction("cancel"):
            cancelled = self._file.run(
                "UPDATE requests SET state = 'cancelled' WHERE request = ? AND state = 'accepted'",
                (request,),
            )
            if cancelled.rowcount != 1:
                raise LedgerError(f"request {request} does not wait; it cannot be cancelled")
            self._file.run("DELETE FROM request_units WHERE request = ?", (request,))
            self._file.remove_value(accepted_error_key(request))
            self._file.append("cancelled", {"request": request})

    def find(self, request_id: str) -> RequestRecord | None:
        """Return the request with this pseudonymous id, or None."""
        return next(iter(self._select("request_id = ?", (request_id,))), None)

    def received(self, number: int) -> str | None:
        """Return when a request came, UTC, ISO 8601; None where an earlier version accepted it."""
        rows = self._file.rows(
            "SELECT json_extract(body, '$.received') FROM entries WHERE kind = 'accepted' AND "
            "json_extract(body, '$.request') = ? ORDER BY sequence DESC LIMIT 1",
            (number,),
        )
        return rows[0][0] if rows else None

    def waiting(self) -> list[RequestRecord]:
        """Return the accepted requests that no batch holds, oldest first."""
        return self._select("state = 'accepted' ORDER BY request", ())

    def of_release(self, release: int) -> list[RequestRecord]:
        """Return the requests of a batch, oldest first."""
        return self._select("release = ? ORDER BY request", (release,))

    def get(self, number: int) -> RequestRecord:
        """Return a request by its number."""
        return self._select("request = ?", (number,))[0]

    def waiting_totals(self) -> tuple[int, int]:
        """Return how many units and samples the waiting requests name together."""
        ((units, samples),) = self._file.rows(
            "SELECT coalesce(sum(num_units), 0), coalesce(sum(num_samples), 0) FROM requests "
            "WHERE state = 'accepted'"
        )
        return int(units), int(samples)

    def waiting_privacy(self) -> list[tuple[float | None, float | None]]:
        """Return each epsilon and delta that waiting requests ask for, once."""
        return [
            (epsilon, delta)
            for epsilon, delta in self._file.rows(
                "SELECT DISTINCT epsilon, delta FROM requests WHERE state = 'accepted'"
            )
        ]

    def units_of(self, number: int) -> list[str]:
        """Return the pseudonyms that a request deletes or has deleted, ascending."""
        rows = self._file.rows(
            "SELECT unit FROM suppressed WHERE request = ?1 UNION "
            "SELECT unit FROM request_units WHERE request = ?1 ORDER BY unit",
            (number,),
        )
        return [unit for (unit,) in rows]

    def _select(self, where: str, values: Sequence[object]) -> list[RequestRecord]:
        rows = self._file.rows(f"SELECT {COLUMNS} FROM requests WHERE {where}", values)
        found = [RequestRecord(*row) for row in rows]
        accepted = self._accepted_errors() if found else {}
        return [replace(each, accepted_error=accepted.get(each.request)) for each in found]

    def _accepted_errors(self) -> dict[int, float]:
        """Return the errors that were accepted, by request; few requests have one."""
        rows = self._file.rows(
            "SELECT key, value FROM ledger WHERE key >= ?1 AND key < ?1 || x'ff'",
            (accepted_error_key(""),),
        )
        return {
            int(key.rpartition("-")[2]): float(json.loads(value)["error"]) for key, value in rows
        }

    def named_among(self, units: Sequence[str]) -> set[str]:
        """Return which of these units a request has deleted or is about to delete."""
        query = "SELECT unit FROM suppressed UNION ALL SELECT unit FROM request_units"
        ((num_named,),) = self._file.rows(f"SELECT count(*) FROM ({query})")
        if num_named <= len(units):  # the shorter of the two lists is gone through
            return {unit for (unit,) in self._file.rows(query)}.intersection(units)
        asked = "unit IN (SELECT value FROM json_each(?))"
        rows = self._file.rows(f"SELECT unit FROM ({query}) WHERE {asked}", (json.dumps(units),))
        return {unit for (unit,) in rows}
