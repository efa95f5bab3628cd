"""PatchGAN (Isola et al. 2017): tells real from made patches; the adversary of an autoencoder's decoder."""

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm


def patch_discriminator(channels: int = 32) -> nn.Sequential:
    """Pictures (B, 3, H, W) to scores (B, 1, H/4, W/4) of patches of 26 pixels, high for real ones.

    Spectral normalisation (Miyato et al. 2018) keeps its slope bounded, so it needs no batch statistics.

    Args:
        channels: width of the first layer.
    """
    return nn.Sequential(
        spectral_norm(nn.Conv2d(3, channels, 4, stride=2, padding=1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(2 * channels, 3 * channels, 3, padding=1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(3 * channels, 1, 3, padding=1)),
    )
