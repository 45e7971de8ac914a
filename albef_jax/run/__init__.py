"""What a run keeps and says."""
