"""The paper's three human-designed 3D baselines (He et al., AAAI 2021, §4.1), with exact class activation maps.

ResNet3D101 and DenseNet3D121 are MONAI's, MC3_18 is Tran et al.'s mixed-convolution network (CVPR 2018, §3.3). Each
ends in global average pooling and one linear layer, so `Classifier.explain` holds for them as for CovidNet3D.
"""

from collections.abc import Callable

from torch import Tensor, nn

from covidnet.errors import UsageError
from covidnet.models.blocks import Classifier

Size = tuple[int, int, int]


def resnet3d101(channels: int, classes: int, size: Size) -> Classifier:
    """ResNet-101 in 3D (Hara et al., CVPR 2018; shortcut type B)."""
    from monai.networks.nets import resnet101

    network = resnet101(spatial_dims=3, n_input_channels=channels, num_classes=classes, shortcut_type="B")
    stages = ("conv1", "bn1", "act", "maxpool", "layer1", "layer2", "layer3", "layer4")
    return Classifier(nn.Sequential(*(getattr(network, stage) for stage in stages)), network.fc)


def densenet3d121(channels: int, classes: int, size: Size) -> Classifier:
    """DenseNet-121 in 3D. Its five halvings need 32 slices; below that the last transition halves in plane only."""
    from monai.networks.nets import DenseNet121

    network = DenseNet121(spatial_dims=3, in_channels=channels, out_channels=classes)
    if size[0] < 32:
        network.features.transition3.pool = nn.AvgPool3d(kernel_size=(1, 2, 2), stride=(1, 2, 2))
    return Classifier(nn.Sequential(network.features, network.class_layers.relu), network.class_layers.out)


def mc3_18(channels: int, classes: int, size: Size) -> Classifier:
    """MC3-18: 3D convolutions in the stem and first stage, 2D (1x3x3) ones after, depth never strided."""
    stem = nn.Sequential(
        nn.Conv3d(channels, 64, (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False),
        nn.BatchNorm3d(64),
        nn.ReLU(inplace=True),
    )
    stages = [nn.Sequential(BasicBlock(64, 64, 3, 1), BasicBlock(64, 64, 3, 1))]
    for width in (128, 256, 512):
        stages.append(nn.Sequential(BasicBlock(width // 2, width, 1, 2), BasicBlock(width, width, 1, 1)))
    model = Classifier(nn.Sequential(stem, *stages), nn.Linear(512, classes))
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


class BasicBlock(nn.Module):
    """Two convolutions of ``(depth, 3, 3)`` with a residual; ``stride`` is in plane."""

    def __init__(self, c_in: int, c_out: int, depth: int, stride: int) -> None:
        super().__init__()
        kernel, padding = (depth, 3, 3), (depth // 2, 1, 1)
        self.body = nn.Sequential(
            nn.Conv3d(c_in, c_out, kernel, (1, stride, stride), padding, bias=False),
            nn.BatchNorm3d(c_out),
            nn.ReLU(inplace=True),
            nn.Conv3d(c_out, c_out, kernel, 1, padding, bias=False),
            nn.BatchNorm3d(c_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or c_in != c_out:
            projection = nn.Conv3d(c_in, c_out, 1, (1, stride, stride), bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm3d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.body(x) + self.shortcut(x))


BASELINES: dict[str, Callable[[int, int, Size], Classifier]] = {
    f.__name__: f for f in (resnet3d101, densenet3d121, mc3_18)
}


def build(name: str, channels: int, classes: int, size: Size) -> Classifier:
    """A registered baseline: float ``(B, channels, D, H, W)`` to logits ``(B, classes)``.

    Raises:
        UsageError: unknown name, or fewer than 16 slices or 32 rows or columns.
    """
    if name not in BASELINES:
        raise UsageError(f"unknown model {name!r}; the registered ones are {', '.join(BASELINES)}")
    if size[0] < 16 or min(size[1:]) < 32:
        raise UsageError(f"{name} needs volumes of at least 16x32x32 voxels, found {'x'.join(map(str, size))}")
    return BASELINES[name](channels, classes, size)
