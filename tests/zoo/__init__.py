"""Small trainings with one planted fault each, and healthy ones: what is found in them, and whether it is right.

``python -m tests.zoo`` runs all of them and prints the table. Every truth is verified by ``probe.py``, which looks at
the training with plain hooks and arithmetic and knows nothing of the recording. Cases marked ``held_out`` are not
looked at while thresholds are chosen.
"""
