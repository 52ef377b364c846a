"""Embedded example sets, photographed or drawn, from scikit-learn's data; nothing is downloaded.

Read classification.py (digits and symbols), scenes.py (crops of photographs), dense.py (boxes and
masks), drawings.py (shapes) and regimes.py (sets with a known best method).
"""
