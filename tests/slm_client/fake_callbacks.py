"""Callbacks of the stand-in for the api: those that a test puts there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.slm_client.fake_batches import problem
from tests.slm_client.fake_http import Answer

if TYPE_CHECKING:
    from tests.slm_client.fake_service import Request


class FakeCallbacks:
    """`deliveries` by the job or batch that they are of; the oldest first."""

    def __init__(self) -> None:
        self.deliveries: dict[str, list[dict[str, Any]]] = {}
        self.secrets = [{"secret": f"whsec_{'1' * 32}", "expires_at": None}]

    def put(self, work_id: str, event: str, status: str, *attempts: dict[str, Any]) -> None:
        """Attempts are a second apart."""
        kind = work_id.partition("_")[0]
        waits = status == "pending"
        made = self.deliveries.setdefault(work_id, [])
        made.append(
            {
                "id": f"{work_id}-{event}",
                "type": f"{kind}.{event}",
                "of": work_id,
                "url": "https://example.org/hook",
                "status": status,
                "created_at": "2026-11-21T12:00:00.500000Z",
                "next_attempt_at": "2026-11-21T12:05:00Z" if waits else None,
                "attempts": [
                    {"at": f"2026-11-21T12:00:0{second}Z", "duration_ms": 1200}
                    | {"status": None, "error": None, "response": "", **attempt}
                    for second, attempt in enumerate(attempts, 1)
                ],
            }
        )

    def answer(self, request: Request, rest: list[str]) -> Answer:
        """`rest` is what comes after `callbacks` in the path."""
        first, *others = request.path.strip("/").split("/")
        if first != "callbacks":
            return self._of(f"/{first}", others[0], request.method, rest)
        match request.method, rest:
            case "GET", []:
                return self._failed(request.query)
            case "GET", ["secret"]:
                return 200, {}, {"secrets": self.secrets}
            case "POST", ["secret", "rotate"]:
                overlap = request.body["overlap_seconds"]
                made = f"whsec_{str(len(self.secrets) + 1) * 32}"
                before = [{**self.secrets[0], "expires_at": f"2026-11-21T12:00:0{overlap % 10}Z"}]
                self.secrets = [{"secret": made, "expires_at": None}, *(before if overlap else [])]
                return 200, {}, {"secrets": self.secrets}
        return problem(404, "not_found", "there is no such thing")

    def _of(self, folder: str, work_id: str, method: str, rest: list[str]) -> Answer:
        kind = {"/jobs": "job", "/batches": "batch"}[folder]
        if not work_id.startswith(f"{kind}_"):
            return problem(404, f"{kind}_not_found", f"there is no such {kind}")
        deliveries = self.deliveries.get(work_id, [])
        if (method, rest) == ("GET", []):
            return 200, {}, {"data": deliveries}
        if (method, rest) != ("POST", ["replay"]):
            return problem(404, "not_found", "there is no such thing")
        again = [delivery for delivery in deliveries if delivery["status"] != "pending"]
        if not again:
            return problem(409, "nothing_to_replay", "it has no callback to send again")
        for delivery in again:
            delivery.update(status="pending", next_attempt_at="2026-11-21T13:00:00Z")
        return 202, {}, {"replayed": len(again), "data": deliveries}

    def _failed(self, query: dict[str, str]) -> Answer:
        """Two in a page at most."""
        failed = [
            delivery
            for deliveries in self.deliveries.values()
            for delivery in deliveries
            if delivery["status"] == "failed"
        ][::-1]
        first, size = int(query.get("cursor", 0)), min(2, int(query["limit"]))
        more = str(first + size) if first + size < len(failed) else None
        return 200, {}, {"data": failed[first : first + size], "next_cursor": more}
