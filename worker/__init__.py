"""The side that generates: Celery takes tickets, threads claim work, one thread decodes it all.

Knows nothing of HTTP. Start it with `python -m celery -A worker.app worker`.
"""
