"""How a model learns; one module a method, one contract in method.py."""
