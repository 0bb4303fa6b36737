"""The page at `/`, on which people try the service: a client of its public HTTP interface."""
