"""Devices, processes and where arrays live on them."""
