"""The trainable things: each a LightningModule with the verbs `loss` and `sample`."""

from hoi_lightning.tasks.autoencoder import Autoencoder
from hoi_lightning.tasks.base import HoiTask
from hoi_lightning.tasks.fusionnet import FusionNet
from hoi_lightning.tasks.inpaint_base import InpaintBase
from hoi_lightning.tasks.masknet import MaskNet
from hoi_lightning.tasks.mini_metrics import MiniMetrics

__all__ = ["Autoencoder", "FusionNet", "HoiTask", "InpaintBase", "MaskNet", "MiniMetrics"]
