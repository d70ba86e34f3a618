"""From a topology file to a plan: the model, where everything is written, and every check.

Pure apart from reading the file. What the node classes declare is found out elsewhere and handed
in, so nothing here imports user code.
"""
