"""What does a setting of the search change? Default and changed searches over the same seeds, each with its network trained.

    python -m benchmarks.searches results --with search.alpha_batch=null --with search.budget.size_mib=4
                                                                        # an hour on two cores: 6 minutes a search

One search says little, as another seed finds another network: every setting is searched with the same seeds, what is found
is trained from scratch with equal compute, and the answers on the validation split are compared over all seeds that both
have. All goes through the stages on the packed dataset of a run, so that a stopped comparison goes on where it was, and
what is there is written after every search.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.evolution import Outcome, outcome, over_seeds
from benchmarks.machine import facts
from benchmarks.ranking import VARIANT, costing_of
from covidnet import folder, stages
from covidnet.config import load
from covidnet.evaluation.bootstrap import paired_difference

DEFAULT = "as it is"


def main() -> None:
    """Search, retrain, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=Path("results"), help="of a run, for its dataset")
    parser.add_argument("--with", dest="changes", action="append", default=[], metavar="'KEY=VALUE ...'")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("results/searches"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/searches.json"))
    options = parser.parse_args()
    config = load(None, [f"results={options.results}"])
    dataset, settings = stages.dataset_of(config), config.search.model_dump(mode="json")  # of what is as it is
    outcomes: dict[str, list[Outcome]] = {}
    print(f"{'':<40} {'seed':>4} {'MiB':>5} {'10^6 MAC':>9} {'shared':>7} {'trained':>7}")
    for name in (DEFAULT, *options.changes):
        for seed in range(options.seeds):
            one = searched(name, seed, dataset, options.work)
            outcomes.setdefault(name, []).append(one)
            folder.write_json(options.out, folder.finite({**facts(), "settings": settings, **summary(outcomes)}))
            row = one.row
            print(
                f"{name:<40} {seed:4} {row['size_mib']:5.2f} {row['macs'] / 1e6:9.1f} {row['shared']:7.3f} "
                f"{row['validation_accuracy']:7.3f}",
                flush=True,
            )
    for name, found in summary(outcomes)["differences"].items():
        low, high = found["interval"]
        print(f"{name} less {DEFAULT}: {found['accuracy']:+.1%} [{low:+.1%}, {high:+.1%}]")


def searched(name: str, seed: int, dataset: Path, work: Path) -> Outcome:
    """A search with this change and its network, trained; from its folders where they are complete."""
    changes = [] if name == DEFAULT else name.split()
    config = load(None, [f"seed={seed}", *changes])
    found, trained = (work / name.replace("/", "-") / str(seed) / stage for stage in ("search", "retrain"))
    stages.search(config, dataset, found, VARIANT)
    stages.retrain(config, dataset, found, trained, VARIANT)
    return outcome(name, seed, found, trained, costing_of(config))


def summary(outcomes: dict[str, Sequence[Outcome]]) -> dict[str, Any]:
    """All rows, and of each change the difference in accuracy to the default over the seeds that both have."""
    differences = {}
    for name, changed in outcomes.items():
        if name != DEFAULT:
            pairs = list(zip(changed, outcomes[DEFAULT], strict=False))
            paired = paired_difference(*(over_seeds([pair[i].answers for pair in pairs]) for i in (0, 1)))
            differences[name] = {
                "accuracy": paired.difference, "interval": [paired.low, paired.high], "seeds": len(pairs)
            }  # fmt: skip
    return {"rows": [one.row for found in outcomes.values() for one in found], "differences": differences}


if __name__ == "__main__":
    main()
