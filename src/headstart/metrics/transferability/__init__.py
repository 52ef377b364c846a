"""Scores that predict transfer without training.

Read features.py (LogME, H-score, TransRate, kNN), source_labels.py (LEEP, NCE, NLEEP) and
separation.py (GBC, PARC, SFDA).
"""
