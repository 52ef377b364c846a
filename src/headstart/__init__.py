"""Headstart: transfer learning for CNNs, from a folder of pictures to an honest model."""

__version__ = "0.1.0"
