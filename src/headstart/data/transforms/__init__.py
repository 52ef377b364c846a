"""Pure functions from images to network inputs.

Read preprocess.py (resize, crop, normalise as the weights expect), placement.py (an image on a
canvas, for boxes and masks), augment.py (seeded random views), geometric.py (the same views for
images, boxes and masks) and tiling.py (large images in tiles).
"""
