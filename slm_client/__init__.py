"""The HTTP client of the service, and the `slm` command line.

from slm_client import Client

with Client("http://127.0.0.1:8000") as client:
    print(client.generate("Once upon a time", max_tokens=100).text)
"""

from slm_client.bulk import RowResult
from slm_client.client import DEFAULT_URL, Client
from slm_client.errors import (
    ApiError,
    BadInput,
    JobFailed,
    JobTimeout,
    ServiceUnreachable,
    SlmClientError,
    StartError,
)
from slm_client.job import Failure, Job, Output, Params, Usage
from slm_client.rows import Row

__all__ = [
    "DEFAULT_URL",
    "ApiError",
    "BadInput",
    "Client",
    "Failure",
    "Job",
    "JobFailed",
    "JobTimeout",
    "Output",
    "Params",
    "Row",
    "RowResult",
    "ServiceUnreachable",
    "SlmClientError",
    "StartError",
    "Usage",
]
