"""Run the frozen part once per image and cache its outputs.

Read extractor.py (split point, views, cached features), engines.py (precision and library of the
frozen part, a fixed choice), graphs.py (networks converted for OpenVINO) and regions.py (features
of objects and regions).
"""
