"""Each operation of an encoder alone: every implementation of it side by side."""
