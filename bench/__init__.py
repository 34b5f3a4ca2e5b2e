"""Benchmarks of vecsmith: `make bench`, or one by one as `python -m bench.<name>`.

Installed as `vecsmith.bench`.
"""
