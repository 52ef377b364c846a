"""Penalties that keep a network close to its start.

Read penalties.py (settings and penalties on outputs), anchoring.py (penalties on weights) and
terms.py (both, bound to a network).
"""
