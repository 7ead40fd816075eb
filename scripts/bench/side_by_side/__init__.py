"""What the subjects of scripts/bench share.

turns.py     works that take turns in one process, and the ratios of paired rounds
process.py   one measurement in a fresh process, or in the ranks of torchrun
memory.py    peak memory of a process (Linux)
photographs.py  shards of pictures that compress and decode as photographs do
training.py  a training step as the trainer builds it, on random pairs
machine.py   what a figure was measured on
record.py    tables, goals and curves of one subject: on the terminal and as JSON
"""
