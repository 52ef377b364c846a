"""Pretrained networks: names, weights, stages and freezing.

Read catalog.py (the names and the table of backbones), domains.py (weights of other domains, and
the names of their tensors), timm_config.py (backbones from a config of
timm), spec.py (the specification of a backbone), weights.py (find, verify and read files),
downloads.py (bounded, verified downloads), stages.py (the stages of each family of networks),
backbone.py (the module, run stage by stage), rungs.py (how much of a backbone can train, by
resolution), freezing.py (which parameters are trained, and the check that the others did not
change), tracing.py and own_module.py (a network of the user's own), plugin_backbones.py (a network
of another package) and frozen.py (a frozen backbone with its weights).
"""
