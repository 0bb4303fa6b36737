"""How many jobs of each model a worker runs at once, so that one model's flood starves no other."""

from __future__ import annotations

import threading
from collections.abc import Iterable


class Places:
    """`each` places for every model. Safe for threads."""

    def __init__(self, models: Iterable[str], each: int) -> None:
        self._free = dict.fromkeys(models, each)
        self._missed: set[str] = set()
        self._lock = threading.Lock()

    def take(self, model: str) -> bool:
        """False if every place is taken: who has one will look for work again."""
        with self._lock:
            if not self._free.get(model):
                self._missed.add(model)
                return False
            self._free[model] -= 1
            return True

    def leave(self, model: str) -> bool:
        """Whether somebody was turned away since: then there may be work that nobody saw."""
        with self._lock:
            self._free[model] += 1
            missed = model in self._missed
            self._missed.discard(model)
            return missed
