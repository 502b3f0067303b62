"""Measurements of fastdistil beside the engines people use today, on real sentences.

Commands: ``python -m benchmarks.demo``, ``forward`` (fastdistil beside its peers),
``instruction_sets`` (the same on each instruction set), ``parts`` and ``roofline`` (where the time
goes), ``threads`` (scaling, company), ``load`` (to the first vector), ``accuracy`` and ``probe``
(what a precision costs).
"""
