"""Contains the commands that are not part of the package. Run them in the root of the repository.

A script `NAME.sh` makes the environment and then does its work, in most cases with `python -m scripts.NAME`. The folders bench,
paper, mutation and fuzz have the same shape: `__main__.py` is the command, `__init__.py` lists the modules, and CONTRIBUTING.md
says where each one writes its records and which page shows them.
"""
