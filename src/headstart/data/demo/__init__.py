"""Embedded example sets, drawn or made from scikit-learn's data; nothing is downloaded.

Read classification.py (digits and symbols), dense.py (boxes and masks), drawings.py (shapes) and
regimes.py (sets with a known best method).
"""
