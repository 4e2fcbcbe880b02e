"""The bundle: everything that serving needs, in one folder that is verified before anything of it is loaded.

    bundle = Bundle.load(Path("results/export/bundle"))
    bundle.labels, bundle.version          # ('NCP', 'CP', 'Normal'), '3f9c2a7d01be'

The same inputs give the same bytes: no times, no paths, no pickle. `SHA256SUMS` has the format of
``sha256sum --check``; it finds damage and mixed-up files. It is not a signature: whoever can replace every file can
replace the sums as well. `covidnet.export.signing` adds one; where the environment variable COVIDNET_BUNDLE_KEY names a
public key, no bundle is loaded without a signature by it.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]

from covidnet.errors import CovidnetError
from covidnet.evaluation.novelty import Detector
from covidnet.export import signing
from covidnet.export.signing import SIGNATURE

MODEL, WEIGHTS, GENOTYPE = "model.onnx", "weights.safetensors", "genotype.json"
PREPROCESS, LABELS, CALIBRATION = "preprocess.json", "labels.json", "calibration.json"
CARD, SUMS = "MODEL_CARD.md", "SHA256SUMS"
INT8, PRECISION = "model.int8.onnx", "precision.json"
REFERENCE = "reference.json"
FILES = tuple(sorted((CALIBRATION, CARD, GENOTYPE, LABELS, MODEL, PREPROCESS, WEIGHTS)))
OPTIONAL = (INT8, PRECISION, REFERENCE)  # what a bundle may hold as well
KEY = "COVIDNET_BUNDLE_KEY"
REMEDY = "copy the whole bundle again from where it was exported, or run `covidnet export` again"
_SUM = re.compile(r"([0-9a-f]{64})  (\S+)")


@dataclass(frozen=True, slots=True)
class Calibration:
    """What turns logits into calibrated probabilities and a volume into an out-of-distribution flag.

    Args:
        temperature: logits are divided by it before the softmax (Guo et al., ICML 2017); already part of `model.onnx`.
        novelty: tells scans unlike the training data.
    """

    temperature: float
    novelty: Detector

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"temperature": self.temperature, "novelty": self.novelty.to_dict()}


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle on disk.

    Args:
        path: the folder.
        labels: class names in the order of the logits.
        preprocess: what `covidnet.data.preprocess.Spec.from_dict` takes.
        calibration: see `Calibration`.
        genotype: the architecture; for a baseline its name, classes, channels and size.
        version: first 12 hex digits of the sha256 of `SHA256SUMS`, so of everything in the bundle.
        precisions: verdicts of `covidnet.export.precision` by name (``int8``, ``bfloat16``); empty where none was tried.
        reference: what `covidnet.export.reference.Reference.from_dict` takes; None where drift can't be told.
    """

    path: Path
    labels: tuple[str, ...]
    preprocess: dict[str, Any]
    calibration: Calibration
    genotype: dict[str, Any]
    version: str
    precisions: dict[str, dict[str, Any]] = field(default_factory=dict)
    reference: dict[str, Any] | None = None

    @property
    def model(self) -> Path:
        """The ONNX file."""
        return self.path / MODEL

    @classmethod
    def load(cls, directory: Path) -> "Bundle":
        """Verify a bundle and read all of it but the weights.

        Raises:
            CovidnetError: a file is missing, altered or unlisted, the files don't belong together, the model keeps
                weights outside of its file, or a demanded signature is missing or wrong. The message names the file.
        """
        sums = _verify(directory)
        if key := os.environ.get(KEY):
            signing.verify(directory, Path(key))
        tree = {name: _read_json(directory / name) for name in (CALIBRATION, GENOTYPE, LABELS, PREPROCESS)}
        tried = _read_json(directory / PRECISION) if (directory / PRECISION).exists() else {}
        bundle = cls(
            path=directory,
            labels=_labels(tree[LABELS], directory / LABELS),
            preprocess=_object(tree[PREPROCESS], directory / PREPROCESS),
            calibration=_calibration(tree[CALIBRATION], directory / CALIBRATION),
            genotype=_object(tree[GENOTYPE], directory / GENOTYPE),
            version=hashlib.sha256(sums.encode()).hexdigest()[:12],
            precisions=_object(tried, directory / PRECISION),
            reference=_reference(directory / REFERENCE),
        )
        for name in (MODEL, INT8):
            if (directory / name).exists():
                _check_model(bundle, directory / name)
        return bundle


def write(
    directory: Path,
    *,
    model: Path,
    weights: Path,
    genotype: Mapping[str, Any],
    preprocess: Mapping[str, Any],
    labels: Sequence[str],
    calibration: Calibration,
    card: str,
    extras: Mapping[str, bytes] | None = None,
) -> Bundle:
    """Write a bundle and read it back verified.

    Args:
        directory: the target, absent or empty.
        model: ONNX file of `covidnet.export.onnx.export`, made with the `metadata` of the same arguments.
        weights: safetensors file of the same network.
        genotype: JSON values; for a baseline its description.
        preprocess: `Spec.to_dict()` of the dataset that the model was trained on.
        labels: class names in the order of the logits.
        calibration: fitted on the validation split.
        card: text of `model_card`.
        extras: contents of `OPTIONAL` files.

    Raises:
        CovidnetError: the target has files in it, or the arguments don't belong together.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise CovidnetError(f"{directory} is not empty; a bundle is written into an absent or empty folder")
    shutil.copyfile(model, directory / MODEL)
    shutil.copyfile(weights, directory / WEIGHTS)
    for name, tree in (
        (GENOTYPE, genotype),
        (PREPROCESS, preprocess),
        (LABELS, list(labels)),
        (CALIBRATION, calibration.to_dict()),
    ):
        (directory / name).write_text(json.dumps(tree, indent=2) + "\n")
    (directory / CARD).write_text(card)
    for name, content in (extras or {}).items():
        (directory / name).write_bytes(content)
    names = sorted([*FILES, *(extras or {})])
    (directory / SUMS).write_text("".join(f"{_sha256(directory / name)}  {name}\n" for name in names))
    return Bundle.load(directory)


def metadata(
    labels: Sequence[str], preprocess: Mapping[str, Any], genotype: Mapping[str, Any], temperature: float
) -> dict[str, str]:
    """What an ONNX file carries about the bundle it belongs to, for `covidnet.export.onnx.export`."""
    return {
        "classes": json.dumps(list(labels)),
        "preprocess_sha256": fingerprint(preprocess),
        "genotype_sha256": fingerprint(genotype),
        "temperature": repr(float(temperature)),
    }


def fingerprint(tree: Mapping[str, Any]) -> str:
    """sha256 of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _verify(directory: Path) -> str:
    """Text of `SHA256SUMS`, once every listed file is there, unaltered, and nothing else is."""
    if not directory.is_dir():
        raise CovidnetError(f"{directory}: no such folder; give the bundle that `covidnet export` wrote")
    found = {entry.name for entry in directory.iterdir()}
    for name in (SUMS, *FILES):
        if name not in found or not (directory / name).is_file():
            raise CovidnetError(f"{directory / name} is missing from the bundle; {REMEDY}")
    extra = sorted(found - {SUMS, SIGNATURE, *FILES, *OPTIONAL})
    if extra:
        raise CovidnetError(f"{directory / extra[0]} doesn't belong to the bundle ({SUMS} doesn't list it); remove it")
    text = (directory / SUMS).read_bytes().decode("ascii", errors="replace")
    lines = [_SUM.fullmatch(line) for line in text.split("\n")[:-1]]
    listed = {match[2]: match[1] for match in lines if match}
    expected_names = sorted(found - {SUMS, SIGNATURE})
    if gone := sorted(listed.keys() & set(OPTIONAL) - found):
        raise CovidnetError(f"{directory / gone[0]} is missing from the bundle; {REMEDY}")
    if None in lines or not text.endswith("\n") or [*listed] != expected_names or len(lines) != len(listed):
        raise CovidnetError(f"{directory / SUMS} is altered: expected one line per file, sorted by name; {REMEDY}")
    for name, expected in listed.items():
        actual = _sha256(directory / name)
        if actual != expected:
            raise CovidnetError(
                f"{directory / name} is altered: expected sha256 {expected[:12]}…, found {actual[:12]}…; {REMEDY}"
            )
    return text


def _check_model(bundle: Bundle, path: Path) -> None:
    """An ONNX file belongs to the other files, and is whole."""
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError:
        raise CovidnetError(f"{path} is not an ONNX file; {REMEDY}") from None
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(model)):
        raise CovidnetError(f"{path} refers to weights outside of the file, which is refused; {REMEDY}")
    found = {entry.key: entry.value for entry in model.metadata_props}
    expected = metadata(bundle.labels, bundle.preprocess, bundle.genotype, bundle.calibration.temperature)
    for (key, value), name in zip(expected.items(), (LABELS, PREPROCESS, GENOTYPE, CALIBRATION), strict=True):
        if found.get(key) != value:
            raise CovidnetError(
                f"{bundle.path / name} doesn't match {path.name}: expected {key} {found.get(key)}, found {value}; "
                f"{REMEDY}"
            )
    size = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][2:]
    if size != list(bundle.preprocess.get("size", ())):
        raise CovidnetError(
            f"{bundle.path / PREPROCESS} doesn't match {path.name}: expected size {size}, "
            f"found {bundle.preprocess.get('size')}; {REMEDY}"
        )


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """Every tensor at any depth: initializers, attributes, subgraphs, functions."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                yield from _tensors(part)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise CovidnetError(f"{path} is not JSON; {REMEDY}") from None


def _object(tree: Any, path: Path) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise CovidnetError(f"{path}: expected a JSON object, found {type(tree).__name__}; {REMEDY}")
    return tree


def _reference(path: Path) -> dict[str, Any] | None:
    return _object(_read_json(path), path) if path.is_file() else None


def _labels(tree: Any, path: Path) -> tuple[str, ...]:
    if not isinstance(tree, list) or len(tree) < 2 or not all(isinstance(name, str) for name in tree):
        raise CovidnetError(f"{path}: expected a JSON list of at least two class names; {REMEDY}")
    return tuple(tree)


def _calibration(tree: Any, path: Path) -> Calibration:
    if not isinstance(tree, dict) or sorted(tree) != ["novelty", "temperature"] or not _is_number(tree["temperature"]):
        raise CovidnetError(f"{path}: expected the number temperature and the object novelty; {REMEDY}")
    try:
        return Calibration(tree["temperature"], Detector.from_dict(tree["novelty"]))
    except CovidnetError as error:
        raise CovidnetError(f"{path}: {error}; {REMEDY}") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
