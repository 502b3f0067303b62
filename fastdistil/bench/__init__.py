"""Fair comparisons of engines: what `fastdistil bench` and the project's own benchmarks/ rest on.

`timing` (turns, medians, spread), `environment` (the machine's record), `results` (what a run
leaves behind), `workloads` (what is run), `engines` and `peers` (who runs it), `race` (answers are
checked, then everybody takes turns), `command` (the command line).
"""
