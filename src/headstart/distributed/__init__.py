"""Several processes and machines.

processes.py: the processes that a launcher such as torchrun has started. ray.py: work on a Ray
cluster. Without a launcher and without ``--on`` neither changes anything.
"""
