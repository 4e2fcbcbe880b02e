"""Every registered model and what it costs."""

from typing import Any

from covidnet.models import baselines, covidnet3d
from covidnet.models.cost import Size, count
from covidnet.models.covidnet3d import SPACES, Genotype

REFERENCE = "5x5_MBConv4"


def catalogue(size: Size, channels: int, classes: int) -> list[dict[str, Any]]:
    """Name, parameters, MiB of float32 and multiply-accumulates of every registered model.

    The size of CovidNet3D depends on what a search finds (or on `search.budget`); listed is the architecture with the
    middle operation, 5x5x5 kernel and expansion 4, in every block.
    """
    names = tuple(str(i) for i in range(classes))
    models = {name: baselines.build(name, channels, classes, size) for name in baselines.BASELINES}
    for variant, space in SPACES.items():
        blocks = tuple((REFERENCE,) * n for n in space.blocks)
        models[space.name] = covidnet3d.build(Genotype(variant, names, channels, size, blocks))
    rows = []
    for name, model in models.items():
        cost = count(model, size, channels)
        rows.append(
            {"name": name, "parameters": cost.parameters, "size_mib": round(cost.size_mib, 4), "macs": cost.macs}
        )
    return rows
