"""Measurements of fastdistil beside the engines people use today, on real sentences.

Every module here is a command: ``python -m benchmarks.demo``, ``python -m benchmarks.forward``,
``python -m benchmarks.accuracy``, ``python -m benchmarks.probe``.
"""
