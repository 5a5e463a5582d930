"""DeepLab v2 in pure torch: backbone, head, and the scales they are run at.

Legend: B images, C classes, H x W pixels, h x w positions of the score map.
"""

from math import ceil

from torch import Tensor, nn
from torch.nn import functional as F

from quintet.papers.deeplab.backbone import Backbone, BackboneConfig
from quintet.papers.deeplab.heads import Head, NetworkConfig
from quintet.papers.deeplab.multi_scale import at_scales, fuse, grid, resize


class DeepLab(nn.Module):
    """Images (B, 3, H, W), RGB in [0, 1] -> scores (B, C, h, w) at the backbone's output stride."""

    def __init__(self, backbone: BackboneConfig, config: NetworkConfig, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.backbone = Backbone(backbone)
        fully_connected = config.form == "vgg" and config.head != "none"
        # of the network's name alone: a resumed run has the same groups, whether or not the weights are still there
        pretrained = fully_connected and backbone.name.startswith("vgg")
        self.head = Head(config, self.backbone.channels, num_classes, backbone.output_stride, pretrained)
        if pretrained and self.backbone.classifier:
            self.head.start_from(self.backbone.classifier)
        self.backbone.classifier = {}

    @property
    def grid(self) -> int:
        """Images of a multiple of this plus 1 pixels a side have their scores exactly on pixels."""
        return grid(self.backbone.output_stride, self.config.scales)

    def pyramid(self, images_bchw: Tensor) -> list[Tensor]:
        """Scores of each scale at its own size, scale 1 first."""
        return [self.head(self.backbone(x)) for x in at_scales(images_bchw, self.config.scales)]

    def forward(self, images_bchw: Tensor) -> Tensor:
        return fuse(self.pyramid(images_bchw))

    def before_last(self, images_bchw: Tensor) -> Tensor:
        """What the last layer sees, (B, F, h, w), of a network with one branch and scale."""
        return self.head.before_last(self.backbone(images_bchw))

    def missing(self, side: int) -> int:
        """Pixels from a side to the next one on the grid."""
        return ceil((side - 1) / self.grid) * self.grid + 1 - side

    def padded(self, images_bchw: Tensor) -> Tensor:
        """The images with the backbone's mean colour, right and below, up to the grid."""
        height, width = images_bchw.shape[-2:]
        down, right = self.missing(height), self.missing(width)
        if not down and not right:
            return images_bchw
        border = F.pad(images_bchw.new_zeros(1, 1, height, width), (0, right, 0, down), value=1.0)
        return F.pad(images_bchw, (0, right, 0, down)) + self.backbone.mean * border

    def full_resolution(self, images_bchw: Tensor) -> Tensor:
        """Scores (B, C, H, W) of images of any size: padded, scored, resized, cut back."""
        padded = self.padded(images_bchw)
        height, width = images_bchw.shape[-2:]
        return resize(self(padded), padded.shape[-2:])[..., :height, :width]
