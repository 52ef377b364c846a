"""Loss functions.

Read classification.py (cross-entropy, focal loss, logit adjustment, label smoothing), own_loss.py
(a function of the user's own), segmentation.py (losses over pixels and regions), distillation.py
(a student and its teacher), and for domain adaptation alignment.py, adversarial.py and
consistency.py.
"""
