"""The prefix cache's parts: what crosses a line, the proof that it may be kept, and where it is kept."""
