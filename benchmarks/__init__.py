"""Measured speed. The last line that each prints is one JSON document; see LOG.md."""
