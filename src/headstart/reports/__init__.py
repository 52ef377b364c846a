"""From results to HTML, JSON, Markdown and images; the templates are in templates/.

Read report.py (a run as a page, as JSON and as a model card), page.py (templates and thumbnails),
charts.py (values to SVG coordinates), first_screen.py and next_steps.py (the result and what to do
next), classification.py, dense.py and insight.py (sections), glossary.py (words of the page),
predictions.py (predictions as CSV), explanations.py (heat maps), comparison.py (compare.html
and its figure), adaptation.py (an adapted model) and data_page.py (the page of a data set).
"""
