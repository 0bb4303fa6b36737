"""What each `slm` command does. Thin: the work is in the modules above this folder."""
