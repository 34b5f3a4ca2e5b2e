"""What every operator must compute, in plain PyTorch: formulas and citations, no tricks.

Modules here import torch and nothing of vecsmith. They are the yardstick of the tests and the
fallback for devices that have no kernel; they are not fast.
"""
