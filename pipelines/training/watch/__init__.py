"""What looks at a training: its lines (`progress`), its held-out rows (`validation`), whether it diverged (`divergence`) and
whether it is asked to end (`halt`).
"""
