"""How a model changes with the sequence length: the analyses of FlexiViT's sections 3.6 and 6 (arXiv 2212.08013).

    flexiclip analyze MODEL --suite openmoji --output runs/analysis [--only cka,attention] [--cue-conflict DIR]

run.py is the entry. subject.py holds what the analyses look at. Each analysis is a module that returns a Finding (finding.py):
numbers, a table and pictures.
"""
