"""From files to batches: sources, text, images, and the stateless pipeline."""
