"""The HTTP client of the service, and the `slm` command line.

from slm_client import Client

with Client("http://127.0.0.1:8000", api_key="slm_…") as client:  # by default SLM_API_KEY
    print(client.generate("Once upon a time", max_tokens=100).text)
    for result in client.bulk(["A cat sat.", "A dog ran."], max_tokens=60):
        print(result.prompt, result.text)
"""

from slm_client.batch import Batch, BatchCounts, BatchParams, Result, RowProblem
from slm_client.callbacks import Attempt, CallbackSecret, Delivery
from slm_client.client import DEFAULT_URL, Client
from slm_client.dead_letters import DeadLetter, Redriven
from slm_client.errors import (
    ApiError,
    BadInput,
    JobFailed,
    JobTimeout,
    ServiceUnreachable,
    SlmClientError,
    StartError,
)
from slm_client.job import Failure, Job, Output, Params, QueuePosition, Usage
from slm_client.keys import KeySettings
from slm_client.stream import DoneEvent, RestartEvent, StatusEvent, StreamEvent, TokenEvent

__all__ = [
    "DEFAULT_URL",
    "ApiError",
    "Attempt",
    "BadInput",
    "Batch",
    "BatchCounts",
    "BatchParams",
    "CallbackSecret",
    "Client",
    "DeadLetter",
    "Delivery",
    "DoneEvent",
    "Failure",
    "Job",
    "JobFailed",
    "JobTimeout",
    "KeySettings",
    "Output",
    "Params",
    "QueuePosition",
    "Redriven",
    "RestartEvent",
    "Result",
    "RowProblem",
    "ServiceUnreachable",
    "SlmClientError",
    "StartError",
    "StatusEvent",
    "StreamEvent",
    "TokenEvent",
    "Usage",
]
