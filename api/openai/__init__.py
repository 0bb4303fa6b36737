"""OpenAI's legacy completions API over our jobs, for programs that already speak it.

Nothing here knows the queue: a call is a job that `Desk` submits, waits for, follows and cancels.
"""
