"""Figures of merit: distances between pictures and distances between layouts."""
