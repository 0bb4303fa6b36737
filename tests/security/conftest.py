"""The service in this process, as the tests of `api` have it."""

from tests.api.conftest import (  # noqa: F401 - fixtures
    client,
    dns,
    events,
    key,
    redis,
    redis_process,
    resolve,
    settings,
    store,
)
