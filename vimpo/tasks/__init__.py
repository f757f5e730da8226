"""Maths problems: generators, prompts, answer checking, reward noise."""
