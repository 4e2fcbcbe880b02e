"""Do the tests notice a mistake? Small ones are planted, one at a time, and the tests of that module are run.

    python -m benchmarks.mutation [--each 25] [--seed 0] [--jobs 2]      # about half an hour on two cores

The score leaves out survivors that are no mistakes: those that mean the same, listed in `EQUIVALENT` with the reason.

A mutant flips a comparison, swaps an operator or `and` and `or`, drops a `not`, adds one to a number, or returns None. It
is killed when a test fails or runs longer than --limit. The tests are those that mirror the module
(`tests/search/test_dnas.py` for `covidnet/search/dnas.py`), and where these don't notice, the quick ones of the folder. A
survivor is a line that may be wrong without a test that says so, or a mutant that means the same: each is listed.
"""

import argparse
import ast
import copy
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from queue import Queue
from typing import Any

from benchmarks.headlines import judge
from benchmarks.machine import facts

ROOT = Path(__file__).parents[1]
GROUPS = {
    "search": ("covidnet/search", "tests/search"),
    "evaluation": ("covidnet/evaluation", "tests/evaluation"),
    "audit": ("covidnet/data/audit", "tests/data/test_audit.py tests/data/test_audit_packed.py"),
    "preprocess": ("covidnet/data/preprocess.py", "tests/data/test_preprocess.py"),
}
# module, line of source, piece and what became of it -> why no test could tell them apart
EQUIVALENT = {
    ("covidnet/data/audit/near.py", "-2.0", "2.0", "3.0"): "less than any correlation, as is -2",
    ("covidnet/data/preprocess.py", "if new < old else", "new < old", "new <= old"): "of equal sizes both are identity",
    ("covidnet/search/budget.py", "high *= 4", "4", "5"): "any growth brackets it",
    ("covidnet/search/budget.py", "high < 1e9", "1000000000.0", "1000000001.0"): "a bound that ends what has no end",
    ("covidnet/search/budget.py", "for _ in range(3 if", "3", "4"): "a round more than is needed",
    ("covidnet/search/budget.py", "for _ in range(3 if", "1", "2"): "a round more than is needed",
    ("covidnet/search/dnas.py", "scans, _ = self.weight_half.batch(0, batch, self.seed)", "0", "1"):
        "a sample of the shape, whichever batch",
    ("covidnet/search/latency.py", "len(rows[0])", "0", "1"): "all rows are as long",
    ("covidnet/search/dnas.py", "generator(self.seed, 11)", "11", "12"): "another stream of random numbers",
    ("covidnet/search/untrained.py", "1 / np.sqrt", "1 / np.sqrt(np.prod(shape[1:]))", "1 * np.sqrt(np.prod(shape[1:]))"):
        "its values are of no network, only its speed counts",
    ("covidnet/search/untrained.py", "1 / 127.5", "127.5", "128.5"): "its values are of no network, only its speed counts",
    ("covidnet/search/untrained.py", 'helper.make_opsetid("", 20)', "20", "21"): "both have the operators",
}  # fmt: skip
DRAWING = {"alpha.py", "plots.py", "architecture.py", "overlay.py", "page.py"}  # looked at, not computed with
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mutant:
    """One planted mistake.

    Args:
        line: where it is.
        was, becomes: the piece of code.
        source: the whole module with the mistake in it.
    """

    line: int
    was: str
    becomes: str
    source: str


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of a module, in the order of the tree.

    Annotations, ``if TYPE_CHECKING`` and the seeds of random numbers, of which one is as good as another, are left alone.
    """
    tree = ast.parse(source)
    sites = list(_sites(tree))
    for place in range(len(sites)):
        changed = copy.deepcopy(tree)
        node = list(_sites(changed))[place]
        was, line = ast.unparse(node), node.lineno
        _mutate(node)
        yield Mutant(line, was, ast.unparse(node), ast.unparse(ast.fix_missing_locations(changed)))


def _sites(node: ast.AST) -> Iterator[Any]:
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.keyword) and node.arg == "random_state":
        return
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("default_rng"):
        return
    if _can_mutate(node):
        yield node
    for name, field in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in field if isinstance(field, list) else [field]:
            if isinstance(child, ast.AST):
                yield from _sites(child)


def _can_mutate(node: ast.AST) -> bool:
    match node:
        case ast.Compare():
            return type(node.ops[0]) in SWAPS
        case ast.BinOp():
            text = any(isinstance(side, ast.JoinedStr) for side in (node.left, node.right))
            return type(node.op) in SWAPS and not text
        case ast.BoolOp() | ast.UnaryOp(op=ast.Not()):
            return True
        case ast.Constant():
            return isinstance(node.value, int | float) and not isinstance(node.value, bool)
        case ast.Return():
            return node.value is not None and not isinstance(node.value, ast.Constant)
    return False


def _mutate(node: Any) -> None:
    match node:
        case ast.Compare():
            node.ops[0] = SWAPS[type(node.ops[0])]()
        case ast.BinOp() | ast.BoolOp():
            node.op = SWAPS[type(node.op)]()
        case ast.UnaryOp():
            node.op, node.operand = ast.Not(), ast.UnaryOp(ast.Not(), node.operand)
        case ast.Constant():
            node.value += 1
        case ast.Return():
            node.value = ast.Constant(None)


def tests_of(module: str, tests: str, tree: Path) -> list[list[str]]:
    """Arguments of pytest: the files that mirror a module, if there are any, then the quick ones of its folder."""
    stem = Path(module).stem
    mirror = [str(path.relative_to(tree)) for path in sorted((tree / "tests").rglob(f"test_{stem}*.py"))]
    return [*([mirror] if mirror else []), [*tests.split(), "-m", "not slow"]]


def survives(module: str, source: str, copy_of_tree: Path, tests: str, limit_s: float) -> bool:
    """Do all tests of a module pass with this source in its place?

    Raises:
        RuntimeError: pytest could not run them, which says nothing of the mutant.
    """
    path = copy_of_tree / module
    original = path.read_text()
    environment = {**os.environ, "PYTHONPATH": str(copy_of_tree), "OMP_NUM_THREADS": "1"}
    options = ["-q", "-x", "-p", "no:cacheprovider"]
    try:
        path.write_text(source)
        for arguments in tests_of(module, tests, copy_of_tree):
            command = [sys.executable, "-B", "-m", "pytest", *options, *arguments]
            run = subprocess.run(command, cwd=copy_of_tree, env=environment, capture_output=True, timeout=limit_s)
            if run.returncode in (3, 4):
                raise RuntimeError(f"pytest {' '.join(arguments)} did not run:\n{run.stdout.decode()[-2000:]}")
            if run.returncode not in (0, 5):  # 5: no test there that is quick
                return False
    except subprocess.TimeoutExpired:
        return False
    finally:
        path.write_text(original)
    return True


def measure(name: str, each: int, seed: int, copies: Sequence[Path], limit_s: float) -> dict[str, Any]:
    """Plant so many mistakes in the modules of a group, one at a time in each copy of the tree."""
    place, tests = GROUPS[name]
    modules = [ROOT / place] if place.endswith(".py") else sorted((ROOT / place).glob("*.py"))
    paths = [str(path.relative_to(ROOT)) for path in modules if path.name not in DRAWING]
    everything = [(path, mutant) for path in paths for mutant in mutants((ROOT / path).read_text())]
    chosen = random.Random(seed).sample(everything, min(each, len(everything)))
    free: Queue[Path] = Queue()
    for one in copies:
        free.put(one)

    def in_a_copy(planted: tuple[str, Mutant]) -> bool:
        tree = free.get()
        try:
            return survives(planted[0], planted[1].source, tree, tests, limit_s)
        finally:
            free.put(tree)

    alive: list[dict[str, Any]] = []
    with ThreadPoolExecutor(len(copies)) as pool:
        for number, ((path, mutant), lives) in enumerate(
            zip(chosen, pool.map(in_a_copy, chosen), strict=True), start=1
        ):
            shown = f"{path}:{mutant.line}: {mutant.was[:70]}  ->  {mutant.becomes[:70]}"
            print(f"{number}/{len(chosen)} {'SURVIVES' if lives else 'killed  '} {shown}", flush=True)
            if lives:
                found = asdict(mutant)
                del found["source"]
                alive.append({"module": path, **found, "equivalent": why_equivalent(path, mutant)})
    return {
        "possible": len(everything),
        "planted": len(chosen),
        "equivalent": sum(one["equivalent"] is not None for one in alive),
        "killed": len(chosen) - len(alive),
        "survivors": alive,
    }


def why_equivalent(module: str, mutant: Mutant) -> str | None:
    """The reason why a survivor is no mistake; None where it is one."""
    line = (ROOT / module).read_text().splitlines()[mutant.line - 1]
    reasons = (
        reason
        for (place, piece, was, becomes), reason in EQUIVALENT.items()
        if place == module and piece in line and (was, becomes) == (mutant.was, mutant.becomes)
    )
    return next(reasons, None)


def score(groups: Sequence[dict[str, Any]]) -> float:
    """Killed of those that are mistakes."""
    killed, planted, equivalent = (sum(one[key] for one in groups) for key in ("killed", "planted", "equivalent"))
    return killed / (planted - equivalent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=25, help="mutants per group")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=300, help="seconds of tests per mutant")
    parser.add_argument("--jobs", type=int, default=1, help="mutants side by side")
    parser.add_argument("--groups", nargs="*", default=list(GROUPS), choices=list(GROUPS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/mutation.json"))
    options = parser.parse_args()
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with tempfile.TemporaryDirectory() as temporary:
        copies = [Path(temporary) / str(job) for job in range(options.jobs)]
        for tree, name in product(copies, tracked.split("\0")[:-1]):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
        groups = {name: measure(name, options.each, options.seed, copies, options.limit) for name in options.groups}
    for name, found in groups.items():
        found["share"] = score([found])
        print(
            f"{name:<12} {found['killed']:>3} of {found['planted']:>3} killed, {found['equivalent']} mean the same: "
            f"{found['share']:.0%} ({found['possible']} possible)"
        )
    tree_of_result = {**facts(), "seed": options.seed, "groups": groups, "share": score(list(groups.values()))}
    judge("mutation", tree_of_result)
    options.out.write_text(json.dumps(tree_of_result, indent=2) + "\n")


if __name__ == "__main__":
    main()
