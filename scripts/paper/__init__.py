"""Makes the studies of docs/explanation/paper.md: `python -m scripts.paper --help`.

__main__.py     the command: runs studies seed by seed and writes the page
studies/        one module per study, which declares its evaluations, claims and plots, and measures a seed
study.py        the types of these declarations
trainings.py    every training that a study may need, each of a recipe in recipes/
work.py         the flexiclip commands of a seed, in an order that is possible
running.py      runs commands, some at a time, and continues after a stop
outcomes.py     the results of a seed's evaluations
records.py      docs/explanation/paper/STUDY.json: the figures and curves of all seeds, and the verdicts on claims
page.py         docs/explanation/paper.md, from the records
"""
