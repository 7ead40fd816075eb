"""Fuzzing of everything that reads files from elsewhere: `python scripts/fuzz.py --help`.

case.py       an input: a few named files in one string of bytes
seeds.py      good and hostile inputs, written by the real libraries    weight_seeds.py   those of weight files and folders
mutate.py     changes that keep enough of a format to get deep into its reader
targets.py    what is run on an input, and which errors it may raise
guard.py      the rules: outcome, memory, time, nothing touched outside, nothing run
worker.py     one process that runs inputs, guided by coverage where atheris is installed
campaign.py   the processes of a run, its findings, their minimal inputs, its report
"""
