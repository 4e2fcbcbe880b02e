"""Pictures of maps: colours by their order, and pages whose parts are whole, apart and where a reader looks for them."""

import io
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from covidnet.errors import CovidnetError
from covidnet.evaluation import cam, overlay


class Box(NamedTuple):
    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> tuple[int, int]:
        return self.right - self.left, self.bottom - self.top

    def apart(self, other: "Box") -> bool:
        beside = self.right <= other.left or other.right <= self.left
        return beside or self.bottom <= other.top or other.bottom <= self.top


Texts = list[tuple[str, Box]]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Texts:
    """Every text that is drawn, with the pixels that it takes."""
    texts: Texts = []
    draw: Callable[..., None] = ImageDraw.ImageDraw.text

    def text(self: ImageDraw.ImageDraw, xy: tuple[float, float], what: str, **how: object) -> None:
        if what:
            texts.append((what, Box(*map(round, self.textbbox(xy, what, font=how["font"])))))  # type: ignore[arg-type]
        draw(self, xy, what, **how)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return texts


def found(texts: Texts, text: str) -> Box:
    (box,) = [box for what, box in texts if what == text]
    return box


def areas(image: Image.Image, color: tuple[int, ...], at_least: int = 500) -> list[Box]:
    """Boxes around the connected pixels of a colour, from left to right."""
    labels, _ = ndimage.label((np.asarray(image) == color).all(axis=-1))
    sizes = np.bincount(labels.ravel())
    slices = [s for k, s in enumerate(ndimage.find_objects(labels), start=1) if sizes[k] >= at_least]
    return sorted(Box(x.start, y.start, x.stop, y.stop) for y, x in slices)


def levels_over(grey: int, steps: int = 101) -> np.ndarray:
    """Colours ``(steps, 3)`` of evidence from none to the most, over tissue of one grey."""
    heat = np.linspace(0, 2, steps, dtype=np.float32)[None, None]
    return overlay.overlay_slices(np.full(heat.shape, grey, np.uint8), heat, [0])[0, 0].astype(float)


def test_faint_evidence_leaves_the_anatomy_and_the_strongest_lets_a_quarter_of_it_through() -> None:
    through = (levels_over(200) - levels_over(0)).mean(axis=-1) / 200
    level = np.linspace(0, 1, 101)
    np.testing.assert_allclose(through, np.interp(level, [0, 0.25, 1], [1, 1, 0.25]), atol=0.01)


def test_stronger_evidence_is_lighter_in_even_steps_from_violet_to_yellow() -> None:
    opacity = np.interp(np.linspace(0, 1, 101), [0.25, 1], [0, 0.75])
    colors = levels_over(0)[30::10] / opacity[30::10, None]
    steps = np.diff(colors @ (0.299, 0.587, 0.114))
    assert 0 < steps.max() < 2.5 * steps.min()
    (red, green, blue), strongest = colors[0], colors[-1]
    assert green < blue < red
    assert strongest[0] > strongest[1] > 2 * strongest[2]


def test_a_slice_is_windowed_from_air_to_dense_tissue_unless_told_otherwise() -> None:
    volume = np.array([[[-2000, -1000, -580, 120, 400, 1000]]], np.int16)
    image = overlay.overlay_slices(volume, np.zeros(volume.shape, np.float32), [0])
    assert image[0, 0, :, 0].tolist() == [0, 0, 76, 204, 255, 255]  # 420 and 1120 of 1400 HU


def scan(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Slice k is of grey 40 + 10 k all over; there is evidence in the middle of the third slice."""
    volume = np.broadcast_to(40 + 10 * np.arange(shape[0], dtype=np.uint8)[:, None, None], shape)
    heat = np.full(shape, -1, np.float32)
    _, height, width = shape
    heat[2, height // 3 : height // 2, width // 3 : width // 2] = 3.14159
    return volume, heat


def assert_readable(page: Image.Image, texts: Texts, parts: list[Box]) -> None:
    """Parts and texts lie inside of the page, which is white at its rim, and none covers another."""
    rim = np.asarray(page).copy()
    rim[3:-3, 3:-3] = 255
    assert (rim == 255).all()
    boxes = [*parts, *(box for _, box in texts)]
    assert all(box.left > 3 and box.top > 3 and box.right < page.width - 3 < page.width for box in boxes)
    assert all(box.bottom < page.height - 3 for box in boxes)
    assert all(a.apart(b) for a, b in combinations(boxes, 2))
    covered = sum(box.size[0] * box.size[1] for box in parts)
    assert covered > 0.5 * page.width * page.height


def color_bar(page: Image.Image) -> Box:
    """The bar, by its ends: the strongest evidence and none over mid-grey."""
    top, bottom = levels_over(110)[-1].astype(int), (110, 110, 110)
    (end,) = areas(page, bottom, 300)
    starts = [box for box in areas(page, tuple(top), 10) if box.left == end.left]
    return Box(end.left, starts[0].top, end.right, end.bottom)


@pytest.mark.parametrize("shape", [(6, 32, 32), (6, 24, 36), (6, 40, 25)])
def test_a_montage_shows_every_slice_plain_above_and_with_the_map_below(
    shape: tuple[int, int, int], written: Texts
) -> None:
    volume, heat = scan(shape)
    page = overlay.montage(volume, heat, "Predicted NCP (0.93), true label CP", label="NCP", slices=6)
    columns = [sorted(areas(page, (40 + 10 * k,) * 3), key=lambda box: box.top) for k in range(6)]
    plain, overlaid = zip(*columns, strict=True)
    (size,) = {box.size for box in (*plain, *overlaid)}
    assert size[0] / size[1] == pytest.approx(shape[2] / shape[1], abs=0.01)
    assert len({box.top for box in plain}) == len({box.top for box in overlaid}) == 1
    assert [box.left for box in plain] == [box.left for box in overlaid]
    (pitch,) = set(np.diff([box.left for box in plain]).tolist())
    assert size[0] < pitch < 1.1 * size[0]
    assert size[1] < overlaid[0].top - plain[0].top < 1.1 * size[1]
    for k, box in enumerate(plain):
        text = found(written, f"slice {k + 1} of 6")
        assert abs(text.left - box.left) < 4
        assert text.bottom < box.top < text.top + 40
    bar = color_bar(page)
    assert bar.left > overlaid[-1].right
    assert (bar.top, bar.bottom) == (overlaid[0].top, overlaid[0].bottom)
    assert_readable(page, written, [*plain, *overlaid, bar])


def test_panels_are_of_one_longer_side_whatever_the_shape() -> None:
    sizes = []
    for shape in ((3, 20, 40), (3, 40, 20), (3, 300, 150)):
        volume, heat = scan(shape)
        sizes.append(areas(overlay.montage(volume, heat, "", label="NCP"), (40, 40, 40))[0].size)
    assert sizes[0] == sizes[1][::-1] == sizes[2][::-1]
    assert max(sizes[0]) == 2 * min(sizes[0]) > 100


def test_the_map_of_a_montage_lies_where_the_evidence_is(written: Texts) -> None:
    volume, heat = scan((3, 30, 30))
    page = overlay.montage(volume, heat, "title", label="CP")
    upper, lower = sorted(areas(page, (60, 60, 60)), key=lambda box: box.top)
    assert not written[0][1].bottom > upper.top
    pixels = np.asarray(page)[lower.top : lower.bottom, lower.left : lower.right]
    y, x = np.nonzero((pixels != 60).any(axis=-1))
    for places in (y, x):  # from a third to half of either side
        assert places.min() == pytest.approx(lower.size[0] / 3, abs=8)
        assert places.max() == pytest.approx(lower.size[0] / 2, abs=8)


@pytest.mark.parametrize(("strongest", "text"), [(3.14159, "3.14"), (-1.0, "0")])
def test_the_colour_bar_runs_from_nothing_to_the_maps_maximum_and_names_the_class(
    strongest: float, text: str, written: Texts
) -> None:
    volume, heat = scan((3, 30, 30))
    page = overlay.montage(volume, np.minimum(heat, strongest), "title", label="CP")
    bar = color_bar(page)
    beside = sorted((box.top, what) for what, box in written if box.left >= bar.right)
    assert [what for _, what in beside] == [text, "evidence", "for CP", "0"]
    ends = [next(box for what, box in written if (box.top, what) == beside[k]) for k in (0, -1)]
    middles = [(box.top + box.bottom) / 2 for box in ends]
    assert middles == pytest.approx([bar.top, bar.bottom], abs=12)
    assert all(bar.right < box.left < bar.right + 15 for box in ends)
    strip = np.asarray(page)[bar.top : bar.bottom, bar.left : bar.right].astype(float)
    assert (strip == strip[:, :1]).all()
    np.testing.assert_allclose(strip[:, 0], levels_over(110, len(strip))[::-1], atol=1)


def test_a_montage_says_what_the_outline_is_only_where_there_is_one(written: Texts) -> None:
    volume, heat = scan((3, 30, 30))
    pages = [overlay.montage(volume, heat, "title", label="CP", mask=mask) for mask in (None, heat > 5)]
    footers = [(what, box) for what, box in written if "Research use only" in what]
    assert ["outline" in what for what, _ in footers] == [False, True]
    for page, (_, box) in zip(pages, footers, strict=True):
        assert box.top > max(area.bottom for k in range(3) for area in areas(page, (40 + 10 * k,) * 3))


def test_an_outline_is_one_pixel_wide_along_the_lesions_edge() -> None:
    volume, heat = scan((3, 40, 40))
    mask = np.zeros(volume.shape, bool)
    mask[0], mask[1, 10:30, 5:15] = True, True
    plain, outlined = (overlay.montage(volume, heat * 0, "title", label="CP", mask=given) for given in (None, mask))
    cyan = (np.asarray(outlined) == (94, 229, 229)).all(axis=-1)
    for k, (first, last) in enumerate([((0, 0), (1, 1)), ((0.125, 0.25), (0.375, 0.75))]):  # shares of the panel
        for panel in areas(plain, (40 + 10 * k,) * 3):
            y, x = np.nonzero(cyan[panel.top : panel.bottom, panel.left : panel.right])
            box = Box(x.min(), y.min(), x.max() + 1, y.max() + 1)
            assert box[:2] == pytest.approx(np.multiply(first, panel.size), abs=1.5 * k)
            assert box[2:] == pytest.approx(np.multiply(last, panel.size), abs=1.5 * k)
            assert len(x) == pytest.approx(2 * sum(box.size) - 4, abs=8 * k)  # its corners may be cut
            on_edge = (x - box.left < 2) | (box.right - x < 3) | (y - box.top < 2) | (box.bottom - y < 3)
            assert on_edge.all()


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 24, 36), (3, 40, 25)])
def test_a_sweep_has_a_frame_per_slice_with_the_map_to_the_right_of_the_plain_slice(
    shape: tuple[int, int, int], written: Texts
) -> None:
    volume, heat = scan(shape)
    frames = overlay.sweep(volume, heat, "Predicted NCP (0.93)", label="NCP")
    assert len(frames) == 3
    per_frame = len(written) // 3
    for k, frame in enumerate(frames):
        texts = written[k * per_frame : (k + 1) * per_frame]
        plain, overlaid = areas(frame, (40 + 10 * k,) * 3)
        assert plain.size == overlaid.size
        assert plain.size[0] / plain.size[1] == pytest.approx(shape[2] / shape[1], abs=0.01)
        assert plain.top == overlaid.top
        assert plain.right < overlaid.left < plain.right + 20
        inside = np.asarray(frame)[overlaid.top : overlaid.bottom, overlaid.left : overlaid.right]
        assert ((inside != 40 + 10 * k).any()) == (k == 2)  # the evidence is in the third slice
        bar = color_bar(frame)
        assert bar.left > overlaid.right
        assert (bar.top, bar.bottom) == (overlaid.top, overlaid.bottom)
        assert found(texts, "Predicted NCP (0.93)").bottom < plain.top
        assert found(texts, f"slice {k + 1} of 3").top > plain.bottom
        assert found(texts, "Research use only, no diagnosis.").top > plain.bottom
        assert_readable(frame, texts, [plain, overlaid, bar])
    assert len({frame.size for frame in frames}) == 1


def test_frames_of_a_sweep_are_twice_as_large_as_the_slices_of_a_montage() -> None:
    volume, heat = scan((3, 30, 40))
    small = areas(overlay.montage(volume, heat, "", label="CP"), (40, 40, 40))[0].size
    large = areas(overlay.sweep(volume, heat, "", label="CP")[0], (40, 40, 40))[0].size
    assert large == (2 * small[0], 2 * small[1])


def test_a_png_holds_the_very_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    stored = Image.open(io.BytesIO(overlay.png(Image.fromarray(pixels))))
    assert stored.format == "PNG"
    np.testing.assert_array_equal(np.asarray(stored), pixels)


def test_overlay_leaves_tissue_without_evidence_as_it_is() -> None:
    volume = np.full((4, 8, 8), 100, np.uint8)
    heat = np.full((4, 8, 8), -1.0, np.float32)
    heat[2, 3, 3] = 5.0
    images = overlay.overlay_slices(volume, heat, [0, 2])
    assert images.shape == (2, 8, 8, 3)
    assert (images[0] == 100).all()
    changed = np.argwhere((images[1] != 100).any(axis=-1))
    assert changed.tolist() == [[3, 3]]


def test_overlay_without_any_evidence_is_the_scan() -> None:
    volume = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    images = overlay.overlay_slices(volume, np.full((1, 8, 8), -2.0, np.float32), [0])
    np.testing.assert_array_equal(images[0], np.repeat(volume[0][..., None], 3, axis=-1))


def test_overlay_scale_is_shared_over_slices() -> None:
    volume, heat = np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4), np.float32)
    heat[0, 0, 0], heat[1, 0, 0] = 10.0, 5.0
    strong, weak = overlay.overlay_slices(volume, heat, [0, 1])[:, 0, 0].astype(int)
    assert strong.sum() > weak.sum() > 0


def test_hounsfield_units_are_windowed() -> None:
    volume = np.array([[[-2000, -1000], [-300, 400]]], np.int16)
    image = overlay.overlay_slices(volume, np.zeros((1, 2, 2), np.float32), [0], window_hu=(-1000, 400))[0, ..., 0]
    assert image.tolist() == [[0, 0], [128, 255]]


def test_overlay_of_another_shape_is_refused() -> None:
    with pytest.raises(CovidnetError, match=r"expected a map of the volume's shape \(2, 4, 4\), found \(1, 2, 2\)"):
        overlay.overlay_slices(np.zeros((2, 4, 4), np.uint8), np.zeros((1, 2, 2), np.float32), [0])


def test_montage_is_a_png_with_outline_only_where_a_mask_is_given() -> None:
    rng = np.random.default_rng(0)
    volume = rng.integers(0, 200, (16, 64, 64), dtype=np.uint8)
    heat = cam.upsample(rng.normal(size=(1, 2, 2)), (16, 64, 64))
    mask = np.zeros((16, 64, 64), bool)
    mask[2:14, 20:40, 20:40] = True

    def cyan(image: Image.Image) -> int:
        decoded = np.asarray(Image.open(io.BytesIO(overlay.png(image))))
        return int((decoded == (94, 229, 229)).all(axis=-1).sum())

    plain = overlay.montage(volume, heat, "Predicted NCP (0.93), true label CP", label="NCP")
    outlined = overlay.montage(volume, heat, "Predicted NCP (0.93), true label CP", label="NCP", mask=mask)
    assert plain.size == outlined.size
    assert cyan(plain) == 0
    assert cyan(outlined) > 1000


def test_montage_of_a_real_scan(real_scans: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    stored = np.asarray(nibabel.load(real_scans / "covid-ct-md" / "nifti_256" / "NCP_P001.nii.gz").dataobj).astype(
        np.int16
    )
    volume = stored.transpose(2, 1, 0)
    heat = cam.upsample(np.random.default_rng(0).normal(size=(2, 8, 8)), volume.shape)
    image = np.asarray(overlay.montage(volume, heat, "Predicted NCP (0.93), true label NCP", label="NCP"))
    assert image.shape[1] > 2 * image.shape[0]
    assert image.std() > 40  # anatomy, not a blank page
