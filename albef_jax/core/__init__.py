"""The training step: task, optimizer, state and step of a config."""
