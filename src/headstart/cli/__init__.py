"""The command line: it parses arguments, calls a workflow and prints.

Read app.py (fit, predict, evaluate, backbones, demo, doctor and the entry point), commands.py
(plan, rank, compare, explain and cache), data.py (data check, view and convert), adapt.py (adapt),
distill.py (distill), export.py (export), bench.py (bench), serve.py (serve), watch.py (watch),
options.py (arguments and flags), tables.py (tables of results), findings.py (findings in files),
terminal.py (progress and results of a run), heartbeat.py (progress while nothing is printed),
progress.py (progress of a call from Python), parser_errors.py (a wrong command line), episodes.py
(scores of episodes) and output.py (how a line is printed: encodings, escapes, line ends, JSON).
"""
