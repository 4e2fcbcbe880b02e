"""CovidNet3D: the search space as data, the genotype, and the network built from one.

Space: He et al., AAAI 2021, §3.2 and EMARS (MICCAI 2022), §3.3. A stem, six layers of a calibration convolution and
searchable MBConv blocks, a 1x1x1 convolution, global average pooling and one linear layer (so that CAM is exact).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from covidnet.errors import CovidnetError
from covidnet.models.blocks import Classifier
from covidnet.models.depthwise import depthwise_conv3d


@dataclass(frozen=True, slots=True)
class Operation:
    """One candidate of a block: an inverted bottleneck, or identity where ``kernel`` is 0."""

    kernel: int
    expansion: int

    @property
    def name(self) -> str:
        """The authors' name, e.g. ``5x5_MBConv4``."""
        return f"{self.kernel}x{self.kernel}_MBConv{self.expansion}" if self.kernel else "Identity"


IDENTITY = Operation(0, 0)


@dataclass(frozen=True, slots=True)
class Space:
    """A search space: everything that the supernet, the cost model and the found network need to know of it."""

    name: str
    widths: tuple[int, ...]
    strides: tuple[int, ...] = (2, 2, 2, 1, 2, 1)
    blocks: tuple[int, ...] = (4, 4, 4, 4, 4, 1)
    stem: int = 32
    stem_stride: int = 2
    last: int = 1280
    operations: tuple[Operation, ...] = (
        Operation(3, 3), Operation(3, 4), Operation(3, 6),
        Operation(5, 3), Operation(5, 4),
        Operation(7, 3), Operation(7, 4),
        IDENTITY,
    )  # fmt: skip

    def operation(self, name: str) -> Operation:
        """The candidate of that name.

        Raises:
            CovidnetError: the space has no such operation.
        """
        for operation in self.operations:
            if operation.name == name:
                return operation
        raise CovidnetError(f"space {self.name} has no operation {name!r}; it has {[o.name for o in self.operations]}")

    @property
    def block_widths(self) -> tuple[int, ...]:
        """Width of each searchable block, input to output."""
        return tuple(w for w, n in zip(self.widths, self.blocks, strict=True) for _ in range(n))

    def layers(self, flat: Sequence[Any]) -> list[list[Any]]:
        """Group one value per block into one list per layer."""
        values = iter(flat)
        return [[next(values) for _ in range(n)] for n in self.blocks]


SPACES = {
    "S": Space("covidnet3d-s", widths=(24, 40, 80, 96, 192, 320)),
    "L": Space("covidnet3d-l", widths=(32, 64, 128, 256, 512, 1024)),
}


def space_of(variant: str, strides: Sequence[int] | None) -> Space:
    """A space of `SPACES`, where given with other strides of its layers."""
    space = SPACES[variant]
    return replace(space, strides=tuple(strides)) if strides else space


@dataclass(frozen=True, slots=True)
class Genotype:
    """A found architecture: what `genotype.json` holds and `build` needs.

    Args:
        variant: key of `SPACES`.
        classes: class names in the order of the logits.
        channels: input channels.
        size: ``(D, H, W)`` the architecture was searched for; the network runs at any size.
        blocks: operation name per block, one list per layer.
        strides: of the layers; empty, the space's own. Fewer halvings give finer class activation maps, for more compute.
    """

    variant: str
    classes: tuple[str, ...]
    channels: int
    size: tuple[int, int, int]
    blocks: tuple[tuple[str, ...], ...]
    strides: tuple[int, ...] = ()

    @classmethod
    def of_path(
        cls,
        path: Sequence[int],
        space: Space,
        variant: str,
        classes: Sequence[str],
        channels: int,
        size: tuple[int, int, int],
    ) -> "Genotype":
        """Name the operations of a path, an index into ``space.operations`` per block; strides are the space's."""
        layers = space.layers([space.operations[i].name for i in path])
        return cls(variant, tuple(classes), channels, size, tuple(tuple(layer) for layer in layers), space.strides)

    @property
    def space(self) -> Space:
        return space_of(self.variant, self.strides)

    @property
    def operations(self) -> list[Operation]:
        """Chosen operation per block, input to output."""
        return [self.space.operation(name) for layer in self.blocks for name in layer]

    def to_dict(self) -> dict[str, Any]:
        """JSON values, the space's name first."""
        return {"space": self.space.name, **asdict(self)}

    def save(self, path: Path) -> None:
        """Write `genotype.json`."""
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "Genotype":
        """Read what `to_dict` gave, or raise KeyError, TypeError or ValueError."""
        SPACES[tree["variant"]]  # names the variant where there is no such space
        return cls(
            variant=tree["variant"],
            classes=tuple(tree["classes"]),
            channels=int(tree["channels"]),
            size=tuple(tree["size"]),
            blocks=tuple(tuple(layer) for layer in tree["blocks"]),
            strides=tuple(tree.get("strides", ())),
        )

    @classmethod
    def load(cls, path: Path) -> "Genotype":
        """Read `genotype.json`.

        Raises:
            CovidnetError: it isn't a genotype of a known space.
        """
        try:
            tree = json.loads(path.read_text())
            genotype = cls.from_dict(tree)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise CovidnetError(
                f"{path} is not a genotype (keys variant of {sorted(SPACES)}, classes, channels, size, blocks): {error}"
            ) from None
        expected, found = genotype.space.blocks, [len(layer) for layer in genotype.blocks]
        if tuple(found) != expected:
            raise CovidnetError(f"{path}: expected {expected} blocks per layer, found {found}")
        _ = genotype.operations  # names an operation that the space doesn't have
        return genotype


class DepthwiseConv3d(nn.Conv3d):
    """Depthwise convolution, stride 1, same padding, with a backward that is fast on CPU."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        return depthwise_conv3d(input, self.weight)


def conv_bn(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU6."""
    conv = nn.Conv3d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm3d(c_out), nn.ReLU6(inplace=True))


class MBConv(nn.Module):
    """Inverted bottleneck with a residual: 1x1x1 expand, depthwise k^3, 1x1x1 project (MobileNetV2, in 3D)."""

    def __init__(self, width: int, operation: Operation) -> None:
        super().__init__()
        hidden = width * operation.expansion
        self.expand = nn.Conv3d(width, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(hidden)
        self.depthwise = DepthwiseConv3d(hidden, operation.kernel)
        self.bn2 = nn.BatchNorm3d(hidden)
        self.project = nn.Conv3d(hidden, width, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.relu6(self.bn1(self.expand(x)), inplace=True)  # (B, e*C, D, H, W)
        y = nn.functional.relu6(self.bn2(self.depthwise(y)), inplace=True)
        out: Tensor = x + self.bn3(self.project(y))
        return out


def build(genotype: Genotype) -> Classifier:
    """The network of a genotype, freshly initialised: float ``(B, channels, D, H, W)`` to logits ``(B, K)``."""
    space = genotype.space
    modules: list[nn.Module] = [conv_bn(genotype.channels, space.stem, 3, space.stem_stride)]
    width_in = space.stem
    for width, stride, layer in zip(space.widths, space.strides, genotype.blocks, strict=True):
        modules.append(conv_bn(width_in, width, 1, stride))  # the calibration convolution
        operations = [space.operation(name) for name in layer]
        modules += [
            MBConv(width, operation) for operation in operations if operation is not IDENTITY and operation.kernel
        ]
        width_in = width
    modules.append(conv_bn(width_in, space.last, 1))
    model = Classifier(nn.Sequential(*modules), nn.Linear(space.last, len(genotype.classes)), dropout=0.2)
    initialise(model)
    return model


def initialise(model: nn.Module) -> None:
    """He initialisation of convolutions (fan-out) and a small linear head; normalisation layers keep their own."""
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=(2.0 / fan_out) ** 0.5)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
