"""``lightning-ft export``: a finished run as a folder that other programs load."""
