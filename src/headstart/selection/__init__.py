"""Choose a backbone and a method.

Read rules.py (pure decision rules), candidates.py (methods that take part, and their cost),
progress.py (events of a race, and how it is stopped), race_context.py (what its steps share),
probes.py (linear probes at several depths), trainings.py (estimates of trainings), expected_gain.py
(the choice by one hold-out), race.py (the whole choice within a time budget), race_estimate.py (its
duration), object_scores.py and object_race.py (the race for boxes and masks), adaptation_choice.py
(whether an adapted model is better, without labels), scores.py (transferability scores of
backbones) and ranking.py (their order).
"""
