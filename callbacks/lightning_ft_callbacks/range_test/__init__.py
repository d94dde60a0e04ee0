"""The range test: a training for trial at rising rates, and what its losses suggest."""
