"""DeepLab v2 in plain torch: a backbone, a head, and the scales at which both are applied.

Legend: B images, C classes, F channels, H x W pixels, h x w positions of the score map.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from quintet.papers.deeplab.backbone import Backbone, BackboneConfig
from quintet.papers.deeplab.config import DeepLabConfig
from quintet.papers.deeplab.cpu_kernels import use_cpu_kernels
from quintet.papers.deeplab.heads import LargeFOV, build_head
from quintet.papers.deeplab.multi_scale import at_scales, fuse, resize, size_step


class DeepLab(nn.Module):
    """Images (B, 3, H, W), RGB in [0, 1] -> scores (B, C, h, w) at the backbone's output stride."""

    def __init__(self, backbone: BackboneConfig, config: DeepLabConfig, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.backbone = Backbone(backbone)
        self.head = build_head(config, self.backbone.channels, num_classes, backbone.output_stride)
        fully_connected = config.form == "vgg" and config.head != "none"
        # By the network's name alone: a resumed run, which does not read the weights, has the same parameter groups.
        self.pretrained_fc = fully_connected and backbone.name.startswith("vgg")
        if self.pretrained_fc and self.backbone.classifier:
            for branch in self.head.branch_list():
                branch.load_fc(self.backbone.classifier)
        self.backbone.classifier = {}
        if config.cpu_kernels:
            use_cpu_kernels(self)

    def new_layers(self) -> list[nn.Conv2d]:
        """The layers without pretrained weights, which learn faster than the backbone."""
        branches = self.head.branch_list()
        if self.pretrained_fc:
            return [branch.classifier for branch in branches]
        return [layer for branch in branches for layer in branch.layers()]

    def pyramid(self, images_bchw: Tensor) -> list[Tensor]:
        """Scores of each scale at its own size, scale 1 first."""
        return [self.head(self.backbone(x)) for x in at_scales(images_bchw, self.config.scales)]

    def forward(self, images_bchw: Tensor) -> Tensor:
        return fuse(self.pyramid(images_bchw))

    def classifier_input(self, images_bchw: Tensor) -> Tensor:
        """The features (B, F, h, w) that the classifier of a network with one branch and one scale reads."""
        if not isinstance(self.head, LargeFOV) or len(self.config.scales) > 1:
            raise TypeError("classifier_input needs a network with one branch and one scale")
        return self.head.classifier_input(self.backbone(images_bchw))

    @property
    def size_step(self) -> int:
        """Images of a multiple of this plus 1 pixels per side have their scores exactly on pixels."""
        return size_step(self.backbone.output_stride, self.config.scales)

    def padding_of(self, side: int) -> int:
        """Pixels that `pad_to_stride` adds to a side."""
        return (1 - side) % self.size_step

    def pad_to_stride(self, images_bchw: Tensor) -> Tensor:
        """The images padded on the right and below with the backbone's mean color, so that scores are on pixels."""
        height, width = images_bchw.shape[-2:]
        down, right = self.padding_of(height), self.padding_of(width)
        if not down and not right:
            return images_bchw
        border = F.pad(images_bchw.new_zeros(1, 1, height, width), (0, right, 0, down), value=1.0)
        return F.pad(images_bchw, (0, right, 0, down)) + self.backbone.mean * border

    def full_resolution(self, images_bchw: Tensor) -> Tensor:
        """Scores (B, C, H, W) of images of any size, which are padded first; the scores are cropped again."""
        padded = self.pad_to_stride(images_bchw)
        height, width = images_bchw.shape[-2:]
        return resize(self(padded), padded.shape[-2:])[..., :height, :width]
