"""What a length does to a model: the analyses of FlexiViT's sections 3.6 and 6 (arXiv 2212.08013), a module for each.

    flexiclip analyze MODEL --suite openmoji --output runs/analysis [--only cka,attention] [--cue-conflict DIR]

run.py is the entry, subject.py what all of them look at; each module gives a Finding (finding.py): numbers, a table, a picture.
"""
