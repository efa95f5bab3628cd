"""Hand-object interaction image synthesis: MaskNet, FusionNet and their experiments, on PyTorch Lightning."""

__version__ = "0.1.0"
