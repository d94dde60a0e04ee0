"""What the heads and the data of a task share: its metrics, and the form of what is predicted."""
