"""What makes any method run: devices, state, checkpoints, metrics, and safe ends.

Knows methods, inputs and models only by what is handed to it.
"""
