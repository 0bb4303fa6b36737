"""Takes the place of a worker in the supervisor's tests: SLM_TEST_WORKER says how it behaves."""

import os
import signal
import sys
import threading

behaviour = os.environ.get("SLM_TEST_WORKER", "")
if behaviour == "broken":
    sys.exit("the checkpoint is not there")
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set() if behaviour != "stubborn" else None)
sys.stdout.write(f"worker has {os.environ['SLM_THREADS']} threads: {' '.join(sys.argv[1:])}\n")
models = os.environ.get("SLM_WORKER_MODELS", "all")
sys.stdout.write(f"serves {models} of {os.environ.get('SLM_MODELS_FILE')}\n")
stop.wait()
sys.stdout.write("worker stopped\n")
