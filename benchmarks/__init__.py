"""Measurements of fastdistil beside the engines people use today, on real sentences.

Commands: ``python -m benchmarks.demo``, ``forward`` (fastdistil beside its peers),
``instruction_sets`` (the same on each instruction set), ``parts`` (where the time goes),
``accuracy`` and ``probe`` (what a precision costs).
"""
