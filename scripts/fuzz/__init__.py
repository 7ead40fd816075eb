"""Fuzzes everything that reads files from other sources: `python -m scripts.fuzz --help`.

__main__.py       the command
case.py           an input: a few named files in one byte string
seeds.py          good and hostile inputs, written by the real libraries
weight_seeds.py   the same for weight files and folders
mutate.py         changes that keep enough of a format to get deep into its reader
targets.py        the readers that run on an input, and the errors that each may raise
guard.py          the rules: documented errors, limits of memory and time, no access outside the folder, no processes
worker.py         one process that runs inputs, guided by coverage if atheris is installed
campaign.py       a whole run: its processes, its findings with minimal inputs, and its report
"""
