"""Examples: reading, decoding, checking, splitting and batching them."""
