"""From text to a checkpoint: `python -m training.prepare`, then `python -m training.train`.

Imports `slm_core` only. A checkpoint made here is served by `slm up --model <directory>`.
"""
