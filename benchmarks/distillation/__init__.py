"""Small encoders made from larger ones: what they keep, what they save, what the teacher costs.

`__main__` is the command, and says what is shown; each other file is a part of it, and `report`
puts what they measured into words.
"""

from __future__ import annotations

from benchmarks.corpora import CACHE

# The sentiment classifier that the full run leaves behind, for `make demo`.
CLASSIFIER = CACHE / "distilled-classifier"
