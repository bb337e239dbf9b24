"""Nonlinear diffusion models in pure PyTorch: flows, linear SDEs, scores, samplers and likelihoods."""
