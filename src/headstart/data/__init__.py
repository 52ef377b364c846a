"""From files to batches.

Read dataset.py (samples, targets, Dataset), labels.py (labels, weights and seeds of scikit-learn),
readers.py (from a source to a Dataset, by the formats in formats/), images.py and masks.py (the
only decoders, with orientation.py, tiff.py, bands.py, dicom.py and pixel_values.py),
image_sizes.py, outlines.py (outlines of objects as masks), checks/ (unreadable files, duplicates,
leaks), splits.py and stratify.py (train, validation and test parts), transforms/ (preprocessing
and augmentation), video.py (frames of videos), loader.py (batches), prepare.py (all of this in the
order of a run), writing/ (data sets as files of other formats), draw.py (boxes and masks drawn on
images) and demo/ (embedded example sets).
"""
