"""What is known before a run: its cost, its speed, its data."""
