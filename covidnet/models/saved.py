"""A trained model on disk: `model.json` says how to build it, `model.safetensors` holds its weights."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from covidnet.errors import CovidnetError
from covidnet.models import baselines, covidnet3d
from covidnet.models.blocks import Classifier
from covidnet.models.covidnet3d import Genotype

Size = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Description:
    """How to build a network.

    Args:
        name: of a baseline, or of the search space.
        classes: in the order of the logits.
        channels: input channels.
        size: ``(D, H, W)`` it was trained at.
        genotype: of a found network, else None.
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    size: Size
    genotype: Genotype | None = None

    def build(self) -> Classifier:
        """The network, freshly initialised."""
        if self.genotype is not None:
            return covidnet3d.build(self.genotype)
        return baselines.build(self.name, self.channels, len(self.classes), self.size)

    def to_dict(self) -> dict[str, Any]:
        tree = asdict(self)
        return tree if self.genotype else {key: value for key, value in tree.items() if key != "genotype"}


def of_genotype(genotype: Genotype, size: Size) -> Description:
    """Description of a found network trained at ``size``."""
    return Description(genotype.space.name, genotype.classes, genotype.channels, size, genotype)


def save(folder: Path, model: Classifier, description: Description) -> None:
    """Write weights and description."""
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "model.json").write_text(json.dumps(description.to_dict(), indent=2) + "\n")


def describe(folder: Path) -> Description:
    """Read `model.json`.

    Raises:
        CovidnetError: missing, or not a description.
    """
    try:
        tree = json.loads((folder / "model.json").read_text())
        found = tree.get("genotype")
        if found:
            found = Genotype.from_dict(found)
        return Description(tree["name"], tuple(tree["classes"]), tree["channels"], tuple(tree["size"]), found)
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CovidnetError(f"{folder} holds no trained model: model.json: {error}") from None


def load(folder: Path) -> tuple[Classifier, Description]:
    """A trained model in evaluation mode. Weights that don't fit are an error: nothing runs on random weights."""
    description = describe(folder)
    model = description.build()
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, RuntimeError) as error:
        raise CovidnetError(f"{folder}: the weights don't fit model.json: {str(error).splitlines()[0]}") from None
    return model.eval(), description
