"""CUDA graphs change nothing but the time."""

import pytest
import torch

from covidnet.config import Augment, Budget, Search
from covidnet.models import cost
from covidnet.models.covidnet3d import SPACES
from covidnet.models.supernet import Supernet
from covidnet.search import dnas
from covidnet.search.budget import Costing
from covidnet.training import graphs
from covidnet.training.loop import place
from covidnet.training.volumes import Volumes

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
SIZE = (8, 32, 32)


def losses(share_weights: bool, recorded: bool, steps: int = 6) -> list[float]:
    """Of a short search."""
    space, device = SPACES["S"], torch.device("cuda")
    settings = Search(share_weights=share_weights, batch=8, alpha_batch=4, warmup_steps=2, steps=steps - 2, size=SIZE)
    scans = torch.randint(0, 256, (32, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    half = Volumes(scans.to(device), (torch.arange(32) % 3).to(device))
    torch.manual_seed(0)
    supernet = place(Supernet(space, 1, 3, share_weights), device)
    run = dnas.Run(supernet, Costing(cost.table(space, SIZE, 1, 3), Budget()), half, half, settings, Augment(), 0)
    with graphs.recorded(run.parts() if recorded else [], half=True):
        rows = [run.iterate() for _ in range(steps)]
        assert all(("forward" in vars(part)) is recorded for part in supernet.calibrations)
    assert not any("forward" in vars(module) for module in supernet.modules())
    return [row[name] for row in rows for name in ("weight_loss", "alpha_loss") if row[name] is not None]


@pytest.mark.parametrize("share_weights", [True, False], ids=["shared", "separate"])
def test_a_recorded_search_sees_the_losses_of_one_that_is_not(share_weights: bool) -> None:
    recorded, launched = (losses(share_weights, recorded) for recorded in (True, False))
    assert recorded == pytest.approx(launched, rel=0.02)  # bfloat16


def test_what_cannot_be_recorded_goes_on_without(capsys: pytest.CaptureFixture[str]) -> None:
    class Waits(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * float(x.detach().sum())  # a copy to the host, which no graph can hold

    module, x = Waits().cuda(), torch.ones(2, 1, 1, 1, 1, device="cuda", requires_grad=True)
    with graphs.recorded([([module], x)], half=False):
        assert torch.equal(module(x), 2 * x)
    assert "without CUDA graphs" in capsys.readouterr().err
