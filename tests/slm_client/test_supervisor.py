from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from slm_client import StartError
from slm_client.child import Part
from slm_client.supervisor import Supervisor
from tests.slm_client.processes import REPOSITORY, eventually, lives, python, sleeper, stubborn

Make = Callable[..., tuple[Supervisor, list[str]]]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes supervisors, not yet started, with a list of their events; stops them in the end."""
    made: list[Supervisor] = []

    def make(stages: Sequence[Sequence[Part]], **options: Any) -> tuple[Supervisor, list[str]]:
        events: list[str] = []
        options = {"ready": lambda: True, "pause": 0.02, **options}
        made.append(
            Supervisor(stages, log_dir=tmp_path, cwd=tmp_path, on_event=events.append, **options)
        )
        return made[-1], events

    yield make
    for supervisor in made:
        supervisor.stop()


def test_stages_start_in_order_and_stop_in_reverse(make: Make, tmp_path: Path) -> None:
    mark = tmp_path / "ready"
    code = f"import time; time.sleep(0.3); open({str(mark)!r}, 'w').close(); time.sleep(600)"
    seen: list[bool] = []
    first = Part("first", python(code), ready=mark.exists)
    second = Part("second", sleeper("second").command, ready=lambda: not seen.append(mark.exists()))
    supervisor, events = make([[first], [second], [sleeper("a"), sleeper("b")]])
    supervisor.start()
    assert seen == [True]
    pids = supervisor.pids()
    assert list(pids) == ["first", "second", "a", "b"]
    supervisor.stop()
    assert not any(lives(pid) for pid in pids.values())
    assert supervisor.pids() == {}
    assert [event for event in events if event.startswith("st")] == [
        "starting first",
        "starting second",
        "starting a",
        "starting b",
        "stopping a, b",
        "stopping second",
        "stopping first",
    ]
    supervisor.wait()  # no error to raise


def test_what_dies_is_restarted(make: Make) -> None:
    supervisor, events = make([[sleeper("a"), sleeper("b")]])
    supervisor.start()
    before = supervisor.pids()
    os.kill(before["a"], signal.SIGKILL)
    eventually(lambda: supervisor.pids().get("a") not in (before["a"], None))
    assert supervisor.pids()["b"] == before["b"]
    assert "a was killed by SIGKILL; restarting it in 0.02 s" in events


def test_what_keeps_dying_ends_everything(make: Make, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    flaky = f"import os, time; time.sleep(0.05 if os.path.exists({str(ready)!r}) else 600)"
    code = f"print('the disk is full')\n{flaky}\nraise SystemExit(3)"
    supervisor, events = make([[sleeper("other")], [Part("flaky", python(code))]])
    supervisor.start()
    pids = supervisor.pids()
    ready.touch()
    os.kill(pids["flaky"], signal.SIGKILL)
    with pytest.raises(StartError, match="flaky died 5 times in a row") as caught:
        supervisor.wait()
    assert "exit code 3" in str(caught.value)
    assert "  the disk is full" in str(caught.value)
    assert str(tmp_path / "flaky.log") in str(caught.value)
    assert not lives(pids["other"])
    pauses = [event.split()[-2] for event in events if event.endswith(" s")]
    assert pauses == ["0.02", "0.04", "0.08", "0.16"]


def test_deaths_far_apart_do_not_add_up(make: Make) -> None:
    part = Part("mortal", python("import time; time.sleep(0.2)"))
    supervisor, events = make([[sleeper("other"), part]], settled=0.1)
    supervisor.start()
    eventually(lambda: events.count("restarted mortal") >= 6)
    assert supervisor.pids()["other"]


def test_a_death_before_everything_is_ready_is_an_error(make: Make) -> None:
    code = "import sys; sys.exit('no such model')"
    supervisor, _ = make([[sleeper("other")], [Part("bad", python(code))]], ready=lambda: False)
    with pytest.raises(StartError, match=r"bad did not start: it ended with exit code 1\.\n") as e:
        supervisor.start()
    assert "no such model" in str(e.value)
    assert supervisor.pids() == {}


def test_what_runs_once_comes_before_the_rest(make: Make, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = f"import time; time.sleep(0.2); open({str(mark)!r}, 'w').close()"
    seen: list[bool] = []
    after = Part("after", sleeper("after").command, ready=lambda: not seen.append(mark.exists()))
    supervisor, events = make([[Part("step", python(code), once=True)], [after]])
    supervisor.start()
    assert seen == [True]
    assert list(supervisor.pids()) == ["after"]
    os.kill(supervisor.pids()["after"], signal.SIGKILL)
    eventually(lambda: "restarted after" in events)
    assert not any("step" in event for event in events if event != "starting step")


def test_what_runs_once_must_succeed(make: Make) -> None:
    code = "import sys; sys.exit('no key for you')"
    step, other = Part("step", python(code), once=True), sleeper("other")
    supervisor, events = make([[step], [other]])
    with pytest.raises(StartError, match=r"step failed: it ended with exit code 1\.\n") as caught:
        supervisor.start()
    assert "no key for you" in str(caught.value)
    assert "starting other" not in events


def test_a_command_that_does_not_exist(make: Make) -> None:
    supervisor, _ = make([[Part("bad", ["/no/such/command"])]], ready=lambda: False)
    with pytest.raises(StartError, match="cannot run /no/such/command: No such file"):
        supervisor.start()


def test_never_ready_is_an_error(make: Make) -> None:
    supervisor, _ = make([[sleeper("a")]], ready=lambda: False, start_timeout=0.2)
    with pytest.raises(StartError, match=r"not ready after 0\.2 s"):
        supervisor.start()
    assert supervisor.pids() == {}


def test_an_error_inside_is_not_swallowed(make: Make) -> None:
    def broken() -> bool:
        raise ZeroDivisionError

    supervisor, _ = make([[sleeper("a")]], ready=broken)
    with pytest.raises(ZeroDivisionError):
        supervisor.start()
    assert supervisor.pids() == {}


def test_what_ignores_sigterm_is_killed_after_its_grace(make: Make, tmp_path: Path) -> None:
    supervisor, events = make([[stubborn("a", grace=0.3)]])
    supervisor.start()
    eventually((tmp_path / "a.log").read_text)
    began = time.monotonic()
    supervisor.stop()
    assert 0.3 <= time.monotonic() - began < 3
    assert events[-2:] == ["stopping a", "killing a"]


def test_ctrl_c_while_stopping_kills_at_once(make: Make, tmp_path: Path) -> None:
    supervisor, _ = make([[stubborn("a", grace=60), sleeper("b")]])
    supervisor.start()
    eventually((tmp_path / "a.log").read_text)
    pids = supervisor.pids()
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        supervisor.stop()
    timer.join()
    assert time.monotonic() - began < 3
    assert not any(lives(pid) for pid in pids.values())


def test_stop_during_the_start(make: Make) -> None:
    supervisor, _ = make([[sleeper("a")]], ready=lambda: False)
    timer = threading.Timer(0.2, supervisor.stop)
    timer.start()
    supervisor.start()
    timer.join()
    assert supervisor.pids() == {}


def test_stop_without_a_start(make: Make) -> None:
    make([[sleeper("a")]])[0].stop()


def test_one_earlier_log_is_kept(make: Make, tmp_path: Path) -> None:
    for text in ("one", "two", "three"):
        supervisor, _ = make([[Part("a", python(f"print({text!r}); import time; time.sleep(9)"))]])
        supervisor.start()
        eventually((tmp_path / "a.log").read_text)
        supervisor.stop()
    assert (tmp_path / "a.log").read_text().strip() == "three"
    assert (tmp_path / "a.log.1").read_text() == "two\n"


@pytest.mark.skipif(sys.platform != "linux", reason="nothing ties a child to its parent there")
@pytest.mark.parametrize("restarted", [False, True])
def test_nothing_outlives_a_killed_supervisor(tmp_path: Path, restarted: bool) -> None:
    code = f"""
import os, sys, threading, time
from pathlib import Path
from slm_client.supervisor import Supervisor
from tests.slm_client.processes import stubborn

supervisor = Supervisor(
    [[stubborn("a", grace=60), stubborn("b", grace=60)]], log_dir=Path({str(tmp_path)!r}),
    cwd=Path(), ready=lambda: True, on_event=lambda event: None, pause=0.01,
)
# From a thread that ends: the children must not end with it.
thread = threading.Thread(target=supervisor.start)
thread.start()
thread.join()
if {restarted}:
    os.kill(supervisor.pids()["a"], 9)
    time.sleep(0.5)
print(*supervisor.pids().values(), flush=True)
time.sleep(600)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert process.stdout is not None
    with process, process.stdout:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        time.sleep(0.3)
        assert all(lives(pid) for pid in pids)
        process.kill()
    eventually(lambda: not any(lives(pid) for pid in pids))
