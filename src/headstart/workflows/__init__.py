"""One file per verb, and the settings, events and files of a run.

Read backbone_names.py (names of backbones), duration.py (durations), recipe.py (all settings of a
run), comparison_recipe.py (those of a comparison), config.py (the same from a file),
verb_settings.py (settings of comparisons and rankings), fit.py, predict.py, evaluate.py,
episodes.py (few-shot heads), plan.py, compare.py, rank.py, explain.py, export.py, bench.py,
serve.py, watch.py, adapt.py with adaptation.py, distill.py, view.py and convert.py (the verbs),
compare_files.py (files of a comparison), resolve.py (settings that the data decide),
auto_backbones.py (backbones on this machine), events.py (events and the log), callbacks.py
(functions that get the events and may stop the run), run.py (what ``fit`` returns), run_folder.py
(the files of a run) and tracking.py (TensorBoard and MLflow).
lead.py holds the requirement that a model beats the baselines, quantise.py the part of an export
with 8-bit integers.
"""
