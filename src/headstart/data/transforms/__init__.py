"""Pure functions from images to network inputs.

Read preprocess.py (resize, crop, normalise as the weights expect), augment.py (seeded random
views), geometric.py (moves that images, boxes and masks share) and tiling.py (large images in
tiles).
"""
