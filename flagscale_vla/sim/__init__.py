"""Simulators: recording expert episodes, and rolling a policy out."""
