"""The parts that the studies share.

study.py       what a study declares: its evaluations, claims, plots, and how it measures a seed
trainings.py   every training that a study may need
work.py        the flexiclip commands of a seed, in an order that is possible
running.py     runs commands, some at a time, and continues after a stop
outcomes.py    the results of a seed's evaluations
records.py     the figures and curves of all seeds, in JSON files
verdicts.py    whether a claim holds, from the figures of several seeds
page.py        docs/explanation/paper.md
"""
