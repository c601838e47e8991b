"""The teams of tenants as the keys of a store say, also of keys that are made while a service runs."""

import logging
import time
from collections.abc import Callable, Mapping

from vitok.errors import VitokError
from vitok.guard import KeyStore
from vitok.serving.spending import teams_of

logger = logging.getLogger("vitok.serving")

_REFRESH_NS = 1_000_000_000
_STRANGER_NS = 10_000_000


class KeyTeams:
    """Tells the team of a tenant, as `vitok.serving.spending.teams_of`, and follows the keys: a team has its budget.

    A change of the keys is known after a second at most; a tenant that was not known is looked for at once (after a
    hundredth of a second), since its key may have just been made. Where the store cannot be read, what was known goes
    on.

    Args:
        store: The keys, which name tenants and teams.
        given: Tenant to team; it goes before the keys.
        clock: Nanoseconds that only grow.

    Raises:
        InvalidInput: If keys of a tenant name different teams. Where that happens later, it is logged, and the teams
            stay as they were.
        StoreError: If the keys cannot be read.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> store = KeyStore(folder.name + "/keys.sqlite")
        >>> _ = store.create("shop", tenant="web", team="checkout", scopes=["infer:*"], actor="ann", now=0)
        >>> team_of = KeyTeams(store)
        >>> team_of("web"), team_of("")
        ('checkout', '')
        >>> folder.cleanup()
    """

    def __init__(
        self, store: KeyStore, given: Mapping[str, str] | None = None, *, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._store = store
        self._given = dict(given or {})
        self._clock = clock
        self._revision = -1
        self._tenants: frozenset[str] = frozenset()
        self._team_of: Callable[[str], str] = str
        self._looked = clock()
        self._read()

    def __call__(self, tenant: str) -> str:
        """Returns the team of a tenant; its own name where nobody says."""
        since = self._clock() - self._looked
        if since >= _REFRESH_NS or (since >= _STRANGER_NS and tenant and tenant not in self._tenants):
            self._looked += since
            try:
                self._read()
            except VitokError as error:
                logger.warning("the teams of tenants stay as they were: %s", error)
        return self._team_of(tenant)

    def _read(self) -> None:
        found = self._store.newer(self._revision)
        if found is None:
            return
        # A revision whose teams contradict each other is looked at once, not each second.
        self._revision = found.revision
        keys = sorted(found.keys.values(), key=lambda key: (key.created, key.key_id))
        self._tenants = frozenset(key.tenant for key in keys)
        self._team_of = teams_of(keys, self._given)
