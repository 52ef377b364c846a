"""Penalties that keep a network close to its start, or to a teacher.

Read penalties.py (settings and penalties on outputs), anchoring.py (penalties on weights),
teacher.py (outputs of a teacher) and terms.py (all of them, bound to a network).
"""
