"""Takes the place of uvicorn in the supervisor's tests: serves the fake service."""

import os
import signal
import sys
import threading

from tests.slm_client.fake_service import FakeService

stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
service = FakeService(seconds=0.05)
service.is_ready = os.environ.get("SLM_TEST_WORKER") != "broken"
with service.served(int(sys.argv[sys.argv.index("--port") + 1])) as url:
    sys.stdout.write(f"api serves {url}\n")
    stop.wait()
sys.stdout.write("api stopped\n")
