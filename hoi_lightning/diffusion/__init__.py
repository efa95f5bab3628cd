"""Diffusion as pure mathematics: tensors of any shape and a callable, so vectors and latents share every line."""
