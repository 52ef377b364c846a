"""The command line: it parses arguments, calls a workflow and prints.

Read app.py (fit, predict, evaluate and the program itself), commands.py (the other verbs),
options.py (flags that commands share), tables.py (tables of results) and terminal.py (progress
and colours).
"""
