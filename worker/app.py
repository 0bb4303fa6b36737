"""The Celery application: `python -m celery -A worker.app worker`."""

from worker.factory import connect_signals, create_app, create_host

host = create_host()
app = create_app(host)
connect_signals(host)
