"""files.md: what the stages write, field by field."""

from dataclasses import fields

from covidnet.data.packed import SPLITS, Row
from covidnet.data.records import ARRAYS
from covidnet.export import bundle, card
from covidnet.folder import PROVENANCE
from docs.generate.markdown import NOTE, code, explained, table

_MANIFEST = {
    "scan_id": "class, pseudonym of the patient, number",
    "patient_id": "keyed hash; the same patient has the same in every dataset of one key",
    "label": "class name",
    "split": f"{', '.join(SPLITS)}; a patient is in one",
    "source": "the reader: dicom, nifti, slices, phantom",
    "sha256": "of the packed voxels",
    "spacing": "`z;y;x` in mm of the raw scan; empty where the source doesn't say",
    "slices": "of the raw scan",
    "warnings": "remarks of reader and preprocessing, separated by semicolons",
    "severity": "grade that the dataset gives beside the class (MosMedData's CT-0 to CT-4); else empty",
}
_ARRAYS = {
    "scans": "`uint8 (N, D, H, W)`; row i is row i of the manifest. Slice 0 is the most cranial, rows run from anterior to "
    "posterior, columns from the patient's right to left",
    "lesions": "`uint8 (N, D, H, W)`, masks where the source knows them (phantoms)",
}
_BUNDLE = {
    bundle.MODEL: "ONNX, opset 20, one file. Input `volume` `uint8 (B, 1, D, H, W)`; outputs `logits` `(B, K)`, "
    "`probabilities` `(B, K)` calibrated, `cam` `(B, K, d, h, w)`",
    bundle.WEIGHTS: "the same network's weights",
    bundle.GENOTYPE: "space, classes, input and chosen operation per block; of a baseline its name",
    bundle.PREPROCESS: "size, HU window and crop, as `ingest` used them",
    bundle.LABELS: "class names in the order of the logits",
    bundle.CALIBRATION: "temperature, and the detector of scans unlike the training data",
    bundle.CARD: "model card: data, figures, limits",
    bundle.SUMS: "of all files, in the format of `sha256sum --check`; its own hash is the version",
    bundle.INT8: "where int8 was accepted: weights int8, activations uint8",
    bundle.PRECISION: "which lower precisions were tried, and what was found",
    bundle.REFERENCE: "order statistics of the training scans, for drift",
    bundle.SIGNATURE: "OpenSSF model-signing, where the bundle was signed",
}
_STAGES = (
    (
        "`dataset`",
        "ingest",
        "the packed dataset, below; `audit.json`, `audit.html`, `contact_sheet.png`, `preprocess.json`",
    ),
    (
        "`baseline/MODEL`",
        "baseline",
        "`model.safetensors`, `model.json` (how to build it), `validation.csv`, `history.json`",
    ),
    (
        "`search/VARIANT`",
        "search",
        "`genotype.json`, `search.json`, `history.csv`, `probabilities.npy` (history, blocks, operations) and `.png`, "
        "`architecture.svg`; `latency.json` where latency is limited",
    ),
    ("`retrain/VARIANT`", "retrain", "as `baseline`"),
    (
        "`evaluate`",
        "evaluate",
        "`report.html`, `results.json`, `summary.md`, checklists, `test-MODEL.csv`, `overlays/`, `plots/`",
    ),
    ("`sweep/VARIANT`", "search --sweep", "`front.json`, `front.png`; `SIZE/search/VARIANT`, `SIZE/retrain/VARIANT`"),
    ("`export`", "export", "`bundle/`, `parity.json`"),
)


def model_card() -> str:
    """model-card.md: what `export` fills in."""
    return "\n".join(
        [
            "# Model card template\n",
            NOTE,
            "`covidnet export` writes it into the bundle as `MODEL_CARD.md` (sections after Mitchell et al., "
            "[Model Cards for Model Reporting](https://doi.org/10.1145/3287560.3287596)), with the facts of the run in the "
            "place of what stands here between angle brackets. For the data there is a [data sheet](../datasheet.md).\n",
            code(card.blank().rstrip(), "text"),
        ]
    )


def page() -> str:
    """The whole page."""
    held = [*bundle.FILES, bundle.SUMS, *bundle.OPTIONAL, bundle.SIGNATURE]
    optional = {*bundle.OPTIONAL, bundle.SIGNATURE}
    about = explained(held, _BUNDLE)
    return "\n".join(
        [
            "# Files\n",
            NOTE,
            "A stage writes one folder under `results`, completely or not at all. Each has `metrics.json` (flat "
            "numbers) and "
            f"`{PROVENANCE}` (stage, parameters, sha256 of every input, versions, git revision, seconds, peak "
            f"memory). A folder "
            "that is complete for the same inputs is left as it is. Nothing that is written is a pickle.\n",
            table(("folder", "stage", "holds"), _STAGES),
            "## Packed dataset\n",
            table(("array", "what"), [(f"`{n[1:-1]}.npy`", what) for n, what in explained(ARRAYS, _ARRAYS)]),
            "`manifest.csv`:\n",
            table(("column", "what"), explained((field.name for field in fields(Row)), _MANIFEST)),
            "More columns may be added by hand: the report breaks its figures down by them. `rejected.csv` "
            "names what was left "
            "out by class and pseudonym, with the reason.\n",
            "## Predictions\n",
            "`validation.csv` and `test-MODEL.csv`: `scan_id`, `patient_id`, `label`, and `logit_CLASS` for "
            "each class, to full "
            "precision and before calibration.\n",
            "## Bundle\n",
            table(
                ("file", "there", "what"),
                [(name, "may be" if name[1:-1] in optional else "always", what) for name, what in about],
            ),
            "No other file may lie in it. [Engines and bundles](../engines.md#the-bundle) says how it is "
            "verified and signed.\n",
        ]
    )
