"""Use of trained models: features, matching and search, from Python and from the shell."""
