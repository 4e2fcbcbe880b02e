import json

import numpy as np
import pytest

from covidnet.evaluation import alpha
from covidnet.models.covidnet3d import SPACES, Genotype, Operation

SPACE = SPACES["S"]


def test_a_panel_per_block_names_what_was_found_and_fills_it_with_the_probabilities():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(8), (30, 21))  # (rows, blocks, operations)
    found = [block % 8 for block in range(21)]
    figure = alpha.picture(SPACE, range(0, 60, 2), probabilities, 20, found)
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in panels] == [SPACE.operations[i].name for i in found]
    for block, axes in enumerate(panels):
        tops = [collection.get_paths()[0].vertices[:, 1].max() for collection in axes.collections]
        stacked = probabilities[:, block].cumsum(axis=1).max(axis=0)
        assert tops == pytest.approx(stacked.tolist(), abs=1e-6)


def test_every_operation_of_a_space_has_a_colour_of_its_own_and_unknown_kernels_have_one():
    assert len({alpha.color(operation, SPACE) for operation in SPACE.operations}) == len(SPACE.operations)
    other = Operation(9, 2)
    assert alpha.color(other, type(SPACE)("mine", (8,), operations=(other,))) == alpha.OTHER


def test_the_picture_is_drawn_from_what_a_search_leaves(tmp_path):
    names = SPACE.layers(["Identity"] * 21)
    Genotype("S", ("a", "b"), 1, (16, 64, 64), tuple(map(tuple, names))).save(tmp_path / "genotype.json")
    np.save(tmp_path / "probabilities.npy", np.full((2, 21, 8), 1 / 8, np.float16))
    history = [{"step": 0, "phase": "warm-up"}, {"step": 1, "phase": "joint"}]
    (tmp_path / "search.json").write_text(json.dumps({"history": history, "found": {"path": [7] * 21}}))
    alpha.draw(tmp_path)
    assert (tmp_path / "probabilities.png").read_bytes().startswith(b"\x89PNG")
