"""Samplers beside torch's own (vimpo/rollout.py)."""
