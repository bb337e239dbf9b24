"""Data that densities are made of: positions of points, and tables with labels."""
