"""Faults on purpose: what bayestune survives, counted.

Every subject is a module with ``run(budget) -> counts``; budget is ``ci`` (seconds) or ``full``.
"""
