"""Runs mutation tests of the core: `python -m scripts.mutation --help`.

__main__.py    the command
core.yaml      the modules of the core and their tests; core.py reads it
tree.py        the copy of the repository that mutmut works on
hits.py        a pytest plugin that counts calls in ranks and fixtures
record.yaml    the results, with a verdict for each mutant that no test noticed; record.py writes it and docs/mutation.json
"""
