"""The training loop and its parts.

Read job.py (inputs and results as values), settings.py (settings that gradient methods share),
engine.py (the only loop), divergence.py (when a training is tried again at lower rates), trainer.py
(train a network on images), network.py (backbone and head in training), objectives.py (loss and
score of each task), losses/, optim.py, lr_finder.py, samplers.py, inputs.py and
activation_cache.py (outputs of frozen stages), profiler.py and time_estimate.py (cost of a
training), checkpoint.py and interruption.py, mixup.py, regularisation/, weight_averaging.py,
adapters.py, logistic_regression.py (the solver of the linear probe), descent.py (its descent for
large problems), penalty_search.py (its cross-validation) and few_shot_heads.py (heads in closed
form).
"""
