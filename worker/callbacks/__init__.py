"""Delivers callbacks: claims what is due, signs it, sends it, and writes how it went.

A process of its own, which needs neither a model nor Celery. Start it with
`python -m worker.callbacks`.
"""
