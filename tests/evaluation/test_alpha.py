import json

import numpy as np
import pytest
from matplotlib.colors import to_rgb

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


SMALL = type(SPACE)("small", (8, 16), (2, 1), (3, 1))


def drawn(steps, begin=None):
    count = len(SMALL.operations)
    probabilities = np.random.default_rng(0).dirichlet(np.ones(count), (len(steps), 4))
    return alpha.picture(SMALL, steps, probabilities, begin, [0] * 4), probabilities


def test_layers_are_rows_that_name_their_width_and_end_where_their_blocks_do():
    figure, _ = drawn(range(10))
    rows = np.array(figure.axes).reshape(len(SMALL.blocks), max(SMALL.blocks))
    assert [[axes.axison for axes in row].count(True) for row in rows] == list(SMALL.blocks)
    for number, (row, width) in enumerate(zip(rows, SMALL.widths, strict=True), start=1):
        assert row[0].get_ylabel() == f"layer {number}\n{width} channels"
        assert all(axes.get_xlim() == (0, 9) and axes.get_ylim() == (0, 1) for axes in row if axes.axison)


def test_a_line_says_when_the_architecture_begins_to_move_if_it_does():
    for begin, lines in ((None, []), (4, [4])):
        figure, _ = drawn(range(10), begin)
        for axes in figure.axes:
            assert [line.get_xdata()[0] for line in axes.lines] == (lines if axes.axison else [])


def test_a_long_search_is_thinned_from_its_first_step_to_its_last():
    figure, probabilities = drawn(range(0, 3000, 3))
    (first, *_) = figure.axes[0].collections
    vertices = first.get_paths()[0].vertices
    steps = np.unique(vertices[:, 0])
    assert steps[[0, -1]].tolist() == [0, 2997]
    assert 100 <= len(steps) <= 200
    assert np.diff(steps).max() < 2 * np.diff(steps).min()
    for step, share in ((0, probabilities[0, 0, 0]), (2997, probabilities[-1, 0, 0])):
        assert vertices[vertices[:, 0] == step, 1].max() == pytest.approx(share)


def test_a_search_of_one_step_has_a_panel_with_some_width():
    figure, _ = drawn([5])
    assert figure.axes[0].get_xlim() == (5, 6)


def test_a_wider_expansion_is_darker_and_a_kernel_has_a_hue_of_its_own():
    for kernel in {operation.kernel for operation in SPACE.operations} - {0}:
        wide = sorted((o for o in SPACE.operations if o.kernel == kernel), key=lambda o: o.expansion)
        lightness = [np.dot(to_rgb(alpha.color(o, SPACE)), (0.299, 0.587, 0.114)) for o in wide]
        assert lightness == sorted(set(lightness), reverse=True)
        hues = {int(np.argsort(to_rgb(alpha.color(o, SPACE)))[-1]) for o in wide}
        assert hues == {{3: 2, 5: 0, 7: 1}[kernel]}  # blue, orange, green
    assert len(set(to_rgb(alpha.color(Operation(0, 0), SPACE)))) == 1  # no operation is grey


def test_more_expansions_than_shades_share_the_darkest():
    many = tuple(Operation(3, expansion) for expansion in (1, 2, 3, 4, 6))
    space = type(SPACE)("mine", (8,), operations=many)
    assert [alpha.color(o, space) for o in many[2:]] == [alpha.COLORS[3][-1]] * 3
    assert len({alpha.color(o, space) for o in many}) == 3
