"""Task definitions in lm-eval's format."""
