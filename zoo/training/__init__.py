"""Training: state, step, optimizer, sharding, checkpoints and the loop around them. Import from its modules.

It knows models and tasks through the protocols in `protocol.py` alone.
"""
