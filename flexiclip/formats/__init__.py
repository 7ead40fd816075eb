"""Readers and writers of other libraries' weight formats: timm, open_clip, big_vision and transformers.

Each library has a reader and a writer next to each other, and no reader unpickles anything. layouts.py has the names under
which each library stores our parameters, in one table for both directions. imported.py and written.py hold what else the
readers and the writers share, and run.py turns what a reader returns into a model folder.
"""
