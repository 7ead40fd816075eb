"""The parts of scripts/mutation.sh.

core.py     the modules of the core and their tests
tree.py     the copy of the repository that mutmut works on
hits.py     a pytest plugin that counts calls in ranks and fixtures
record.py   the results, with a verdict for each mutant that no test noticed
"""
