import pytest
import torch

from covidnet.errors import CovidnetError
from covidnet.models.covidnet3d import SPACES, Genotype, Space
from covidnet.models.supernet import Supernet

TINY = Space("tiny", widths=(8, 12), strides=(2, 1), blocks=(2, 2), stem=8, last=16)


@pytest.fixture(params=[True, False], ids=["shared", "separate"])
def supernet(request):
    torch.manual_seed(0)
    net = Supernet(TINY, 1, 3, share_weights=request.param)
    for name, parameter in net.named_parameters():
        if "bn3.weight" in name:  # zero at the start: every block would be identity
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return net


@pytest.mark.parametrize("path", [(0, 1, 2, 3), (7, 4, 5, 6), (7, 7, 7, 7)])
def test_an_extracted_network_computes_what_the_supernet_does(monkeypatch, supernet, path):
    monkeypatch.setitem(SPACES, "T", TINY)
    layers = TINY.layers([TINY.operations[i].name for i in path])
    genotype = Genotype("T", ("a", "b", "c"), 1, (8, 16, 16), tuple(map(tuple, layers)))
    network = supernet.extract(genotype).train()
    network.dropout.p = 0.0
    volume = torch.randn(3, 1, 8, 16, 16)
    torch.testing.assert_close(network(volume), supernet(volume, path), atol=1e-5, rtol=1e-5)


def test_only_the_sampled_path_gets_weight_gradients(supernet):
    supernet(torch.randn(2, 1, 8, 16, 16), (7, 0, 7, 7)).sum().backward()
    assert all(p.grad is None for p in supernet.blocks[0].parameters())
    assert any(p.grad is not None for p in supernet.blocks[1].parameters())


def test_a_gate_leaves_the_output_as_it_is_and_its_gradient_is_that_of_scaling_the_residual_branch(
    monkeypatch, supernet
):
    volume, path = torch.randn(2, 1, 8, 16, 16).double(), (3, 7, 1, 0)
    supernet.double()
    torch.testing.assert_close(supernet(volume, path, torch.ones(4)), supernet(volume, path))

    def gradients():
        gates = torch.ones(4, dtype=torch.float64, requires_grad=True)
        loss = torch.nn.functional.cross_entropy(supernet(volume, path, gates), torch.tensor([0, 2]), reduction="sum")
        return torch.autograd.grad(loss, [gates, *supernet.parameters()], allow_unused=True)

    found = gradients()
    monkeypatch.setattr("covidnet.models.supernet.gated", lambda x, residual, gate: x + gate * residual)
    assert found[0][1] == 0  # identity has no branch
    assert (found[0][[0, 2, 3]].abs() > 1e-4).all()
    for mine, plain in zip(found, gradients(), strict=True):
        assert (mine is None) == (plain is None)
        if mine is not None:
            torch.testing.assert_close(mine, plain, rtol=1e-6, atol=1e-12)


def test_every_block_starts_as_identity():
    torch.manual_seed(0)
    net = Supernet(TINY, 1, 3)
    volume = torch.randn(2, 1, 8, 16, 16)
    torch.testing.assert_close(net(volume, (5, 5, 5, 5)), net(volume, (7, 7, 7, 7)))


def test_a_genotype_survives_the_file(tmp_path):
    blocks = tuple(("3x3_MBConv6",) * n for n in SPACES["L"].blocks)
    genotype = Genotype("L", ("NCP", "Normal"), 3, (16, 64, 64), blocks)
    genotype.save(tmp_path / "genotype.json")
    assert Genotype.load(tmp_path / "genotype.json") == genotype


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("3x3_MBConv6", "9x9_MBConv6", "no operation '9x9_MBConv6'"),
        ('"L"', '"XL"', "not a genotype"),
        ("{", "", "not a genotype"),
    ],
)
def test_a_genotype_of_another_space_is_refused(tmp_path, old, new, message):
    blocks = tuple(("3x3_MBConv6",) * n for n in SPACES["L"].blocks)
    path = tmp_path / "genotype.json"
    Genotype("L", ("NCP", "Normal"), 3, (16, 64, 64), blocks).save(path)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(CovidnetError, match=message):
        Genotype.load(path)
