"""What is put on top of a trunk."""
