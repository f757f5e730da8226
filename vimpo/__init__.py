"""VIMPO-bench: does value-implicit policy optimisation hold up against PPO and GRPO?"""

__version__ = "0.1.0"
