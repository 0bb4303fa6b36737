"""The contract between api and worker: what a job is, where it waits, and who may change it.

Knows Redis and nothing of HTTP, Celery, torch or the model.
"""
