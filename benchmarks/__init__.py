"""Measurements of fastdistil beside the engines people use today, on real sentences.

Suites, under pytest-benchmark (``python -m benchmarks`` runs them all): ``kernels/``, ``models/``,
``encode/``, ``paper/``, ``scaling/``. Single questions: ``python -m benchmarks.demo``,
``instruction_sets`` (everybody on each instruction set), ``parts`` (where the time goes),
``threads`` (scaling, company), ``load`` (to the first vector), ``accuracy`` and ``probe`` (what a
precision costs), ``heads`` (what it is worth to compute only what a task reads), ``classification``
(a classifier beside transformers' pipeline), ``summaries`` (of news, beside their first sentences),
``scale_out`` (what Ray costs). ``report`` and ``compare`` read what they wrote. ``gpu/`` is
`make gpu`.

Fair turns, the peers and the machine's record are in `fastdistil.bench`, which a user has too.
"""
