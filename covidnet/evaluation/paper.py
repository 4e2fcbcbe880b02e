"""Figures published for these models, to stand beside ours. Protocol and data differ: they are context, not a contest.

Sources: He et al., AAAI 2021 (arXiv:2101.05442); EMARS: He et al., MICCAI 2022. Percent; sizes in MB as published.
"""

from dataclasses import dataclass

PROTOCOL = (
    "Published figures stand here for orientation. Data, splits and training differ from this run; the authors' "
    "released code chooses checkpoints on the test list, and all validation patients of its COVID-CTset split are in "
    "the test set too. A difference between these figures and ours says nothing about the models."
)


@dataclass(frozen=True, slots=True)
class Published:
    """One row of a published benchmark; accuracy, precision, sensitivity and F1 in percent."""

    dataset: str
    model: str
    size_mb: float
    accuracy: float
    precision: float
    sensitivity: float
    f1: float


PUBLISHED = (
    Published("CC-CCII", "ResNet3D101", 325.21, 85.54, 89.62, 77.15, 82.92),
    Published("CC-CCII", "DenseNet3D121", 43.06, 87.02, 88.97, 82.78, 85.76),
    Published("CC-CCII", "MC3_18", 43.84, 86.16, 87.11, 82.78, 84.89),
    Published("CC-CCII", "CovidNet3D-S", 11.48, 88.55, 88.78, 91.72, 90.23),
    Published("CC-CCII", "CovidNet3D-L", 53.26, 88.69, 90.48, 88.08, 89.26),
    Published("CC-CCII", "EMARS-APS (2022)", 3.38, 89.61, 91.48, 89.97, 90.72),
    Published("MosMedData", "ResNet3D101", 325.21, 81.82, 81.31, 97.25, 88.57),
    Published("MosMedData", "DenseNet3D121", 43.06, 79.55, 84.23, 92.16, 88.01),
    Published("MosMedData", "MC3_18", 43.84, 80.40, 79.43, 98.43, 87.92),
    Published("MosMedData", "CovidNet3D-S", 12.48, 81.17, 78.82, 99.22, 87.85),
    Published("MosMedData", "CovidNet3D-L", 60.39, 82.29, 79.50, 98.82, 88.11),
    Published("MosMedData", "EMARS-APS (2022)", 10.69, 88.09, 93.52, 90.59, 92.03),
    Published("COVID-CTset", "ResNet3D101", 325.21, 93.87, 92.34, 95.54, 93.92),
    Published("COVID-CTset", "DenseNet3D121", 43.06, 91.91, 92.57, 92.57, 92.57),
    Published("COVID-CTset", "MC3_18", 43.84, 92.57, 90.95, 94.55, 92.72),
    Published("COVID-CTset", "CovidNet3D-S", 8.36, 94.27, 92.68, 90.48, 91.57),
    Published("COVID-CTset", "CovidNet3D-L", 62.82, 96.88, 97.50, 92.86, 95.12),
    Published("COVID-CTset", "EMARS-APS (2022)", 9.95, 97.66, 97.61, 97.58, 97.59),
)
