"""`slm generate`: one prompt, one story."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated

import typer

from slm_client.client import DEFAULT_URL, Client
from slm_client.commands import options
from slm_client.commands.collect import flags_for, say
from slm_client.commands.durations import seconds
from slm_client.commands.options import print_json, print_result, screen
from slm_client.errors import JobFailed
from slm_client.job import Job, Params
from slm_client.stream import DoneEvent, RestartEvent, TokenEvent

_PARTS = re.compile(r"\{\{|\}\}|\{([a-z][a-z0-9_]{0,63})\}")  # of a template: braces, variables


class _Event(StrEnum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="The text to continue.", show_default=False),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="A template of the model instead of PROMPT; `slm models list` names them.",
            show_default=False,
        ),
    ] = None,
    var: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A variable of the template.", show_default=False),
    ] = None,
    model: options.Model = None,
    max_tokens: options.MaxTokens = 200,
    temperature: options.Temperature = 0.8,
    top_k: options.TopK = 40,
    top_p: options.TopP = 1.0,
    seed: options.Seed = None,
    priority: Annotated[
        int, typer.Option(min=0, max=9, help="Greater goes first; your key may limit it.")
    ] = 0,
    queue_timeout: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Give it up if it has not begun by then: 1s to 7d, as 30s or 5m.",
            show_default="none",
        ),
    ] = None,
    run_timeout: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="End it so long after it has begun; the text so far is kept.",
            show_default="none",
        ),
    ] = None,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            help="Print the text as it comes.",
            show_default="on a terminal, yes",
        ),
    ] = None,
    callback_url: options.CallbackUrl = None,
    callback_event: Annotated[
        list[_Event] | None,
        typer.Option(help="What to be told of; may be repeated.", show_default="every end"),
    ] = None,
    callback_outputs: Annotated[
        bool, typer.Option("--callback-outputs", help="Put the story into the callback.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole job as JSON.")] = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
) -> None:
    """Continue one prompt and print the story.

    Ctrl-C cancels the job.

    Examples:

    \b
      slm generate "Once upon a time"
      slm generate "The dog ran" --temperature 0 --max-tokens 50
      slm generate "Lily had a red ball." --seed 7 --json
      slm generate --template animal --var animal=fox --var name=Finn
      slm generate "Once upon a time" --queue-timeout 30s --run-timeout 5m
      slm generate "Once upon a time" --callback-url https://example.org/hook
    """
    if (prompt is None) == (template is None):
        raise typer.BadParameter("give either a PROMPT or a --template")
    params = options.sampling(model, max_tokens, temperature, top_k, top_p, seed)
    variables = _variables(var or [])
    if template is not None:
        params |= Params(template=template, variables=variables)
    elif var:
        raise typer.BadParameter("--var needs a --template")
    if priority:
        params["priority"] = priority
    if queue_timeout is not None:
        params["queue_timeout"] = seconds("--queue-timeout", queue_timeout, least=1)
    if run_timeout is not None:
        params["run_timeout"] = seconds("--run-timeout", run_timeout, least=1)
    if callback_url:
        params["callback_url"] = callback_url
    elif callback_event or callback_outputs:
        raise typer.BadParameter("--callback-event and --callback-outputs need a --callback-url")
    if callback_event:
        params["callback_events"] = [event.value for event in callback_event]
    if callback_outputs:
        params["callback_outputs"] = True
    streams = not as_json and (sys.stdout.isatty() if stream is None else stream)
    if streams:
        params["stream"] = True
    with options.connect(url, api_key, data_dir) as client:
        job = client.submit(prompt, **params)
        try:
            if as_json:
                print_json(_ended(client, job.id).raw)
                return
            if template is not None:
                prompt = render(_template_text(client, job.model, template), variables)
            if streams:
                _print_stream(client, job.id, prompt or "")
            else:
                print_result((prompt or "") + _ended(client, job.id).text)
        except JobFailed as error:
            if error.job.text and not streams:
                show = f"slm jobs show {job.id}{flags_for(url, data_dir)}"
                say(f"{show} prints the text that it had.")
            raise
        except KeyboardInterrupt:
            screen.print()
            client.cancel(job.id)
            screen.print(f"Cancelled {job.id}.", markup=False)
            raise


def _variables(given: Iterable[str]) -> dict[str, str]:
    variables: dict[str, str] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise typer.BadParameter(f"--var {pair} is not of the form name=value")
        if name in variables:
            raise typer.BadParameter(f"--var {name} is given twice")
        variables[name] = value
    return variables


def render(text: str, variables: Mapping[str, str]) -> str:
    """A template's text with the values in place, as the service puts them: `{name}` is a variable,
    `{{` and `}}` are braces. Values are taken as they are; a variable without one stays."""

    def replacement(part: re.Match[str]) -> str:
        return variables.get(part[1], part[0]) if part[1] else part[0][0]

    return _PARTS.sub(replacement, text)


def _template_text(client: Client, model: str, template: str) -> str:
    """Empty if it is not there any more."""
    templates = next((m.get("templates") for m in client.models() if m["name"] == model), None)
    return str((templates or {}).get(template, {}).get("text", ""))


def _ended(client: Client, job_id: str) -> Job:
    """Raises JobFailed."""
    with screen.status("generating…"):
        return _succeeded(client.wait(job_id))


def _print_stream(client: Client, job_id: str, prompt: str) -> None:
    text = ""
    print_result(prompt, end="")
    for event in client.stream(job_id):
        match event:
            case TokenEvent(text=piece):
                text += piece
                print_result(piece, end="")
            case RestartEvent():
                text = ""
                print_result("")
                screen.print("It runs again on another kind of worker; from the beginning:")
                print_result(prompt, end="")
            case DoneEvent(job=job):
                # An ended job's text is the truth; what was streamed is a beginning of it.
                print_result(job.text[len(text) :])
                _succeeded(job)


def _succeeded(job: Job) -> Job:
    """Raises JobFailed."""
    if not job.succeeded:
        raise JobFailed(job)
    return job
