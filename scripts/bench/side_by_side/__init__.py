"""What the subjects of scripts/bench share.

turns.py     works that take turns in one process, and the ratios of paired rounds
process.py   one measurement in a fresh process
memory.py    peak memory of a process (Linux)
machine.py   what a figure was measured on
record.py    tables, goals and curves of one subject: on the terminal and as JSON
"""
