"""`/batches`: files of prompts in, JSON lines of texts out."""
