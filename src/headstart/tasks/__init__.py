"""What is asked of a picture; one module a task, one contract in task.py."""
