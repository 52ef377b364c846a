"""Pretrained networks: names, weights, stages and freezing.

Read catalog.py (names and their grammar), spec.py (what a name stands for), weights.py (find,
download and verify files), stages.py (where each family of networks is divided), backbone.py (the
module as ordered stages), freezing.py (which parameters train, and the proof that the others did
not change) and frozen.py (a frozen backbone with its weights).
"""
