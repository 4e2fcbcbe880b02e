"""Facts that hold for every registered model."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from covidnet.errors import UsageError
from covidnet.models import baselines, covidnet3d
from covidnet.models.catalogue import catalogue
from covidnet.models.cost import count
from covidnet.models.covidnet3d import SPACES, Genotype

NAMES = [*baselines.BASELINES, *(space.name for space in SPACES.values())]


def build(name, channels, size, classes=3):
    if name in baselines.BASELINES:
        return baselines.build(name, channels, classes, size)
    variant = next(v for v, space in SPACES.items() if space.name == name)
    blocks = tuple(("5x5_MBConv4",) * n for n in SPACES[variant].blocks)
    return covidnet3d.build(Genotype(variant, tuple("abcdefgh"[:classes]), channels, size, blocks))


# MiB of float32 parameters at 3 channels and 3 classes, as published (He et al., AAAI 2021, table 2)
@pytest.mark.parametrize(("name", "published"), [("resnet3d101", 325.21), ("densenet3d121", 43.06), ("mc3_18", 43.84)])
def test_baselines_have_the_published_size(name, published):
    model = build(name, 3, (32, 128, 128))
    assert count(model, (32, 128, 128), 3).size_mib == pytest.approx(published, rel=0.002)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("channels", "size", "classes"), [(1, (16, 64, 64), 3), (3, (16, 32, 48), 2)])
def test_every_model_takes_one_or_three_channels_and_sixteen_slices(name, channels, size, classes):
    model = build(name, channels, size, classes).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, channels, *size)).shape == (1, classes)


@pytest.mark.parametrize("name", NAMES)
def test_the_averaged_map_plus_bias_is_the_logit(name):
    torch.manual_seed(0)
    model = build(name, 1, (16, 32, 32)).eval()
    volume = torch.randn(2, 1, 16, 32, 32)
    with torch.no_grad():
        logits, cam = model.explain(volume)
        expected = model(volume)
    assert cam.shape[:2] == (2, 3)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_counted_macs_equal_an_independent_counter(name):
    model = build(name, 1, (16, 64, 64)).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.to("meta")(torch.zeros(1, 1, 16, 64, 64, device="meta"))
    assert 2 * count(model, (16, 64, 64), 1).macs == counter.get_total_flops()


def test_mc3_18_is_the_original_network():
    """Parameters of the published MC3-18 with 400 classes (Tran et al., CVPR 2018)."""
    model = baselines.build("mc3_18", 3, 400, (16, 112, 112))
    assert sum(p.numel() for p in model.parameters()) == 11_695_440


def test_the_catalogue_lists_every_model_once():
    rows = catalogue((16, 64, 64), 3, 3)
    assert [row["name"] for row in rows] == NAMES
    assert all({"name", "parameters", "size_mib", "macs"} == set(row) for row in rows)


def test_unknown_names_and_volumes_too_small_are_usage_errors():
    with pytest.raises(UsageError, match="resnet3d101, densenet3d121, mc3_18"):
        baselines.build("resnet3d50", 1, 3, (16, 64, 64))
    with pytest.raises(UsageError, match="at least 16x32x32"):
        baselines.build("mc3_18", 1, 3, (8, 64, 64))


def test_fewer_halvings_give_finer_maps_from_the_same_weights(tmp_path):
    blocks = tuple(("3x3_MBConv3", *("Identity",) * (n - 1)) for n in SPACES["S"].blocks)
    coarse = Genotype("S", ("a", "b", "c"), 1, (16, 64, 64), blocks)
    replace(coarse, strides=(2, 2, 1, 1, 1, 1)).save(tmp_path / "genotype.json")
    fine = Genotype.load(tmp_path / "genotype.json")
    model = covidnet3d.build(coarse).eval()
    finer = covidnet3d.build(fine).eval()
    finer.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert model.explain(torch.zeros(1, 1, 16, 64, 64))[1].shape == (1, 3, 1, 2, 2)
        logits, cam = finer.explain(torch.randn(1, 1, 16, 64, 64))
    assert cam.shape == (1, 3, 2, 8, 8)
    torch.testing.assert_close(cam.mean(dim=(2, 3, 4)) + finer.head.bias, logits, atol=1e-5, rtol=0)
