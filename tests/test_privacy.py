"""No tag, name, date or UID of a patient reaches an output: they are planted everywhere, and every output is searched."""

import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import toy_bundle
from pydicom import Dataset

from covidnet import cli
from tests.data.sources.dicom_series import body, series

SECRETS = [
    "Planted", "Jane", "MRN4711", "19620229", "20210817", "1.2.826.0.1.3680043", "ACC889", "Mercy-General", "Dr-Roentgen",
    "Elm-Street", "555-0199",
]  # fmt: skip


def planted(depth: int = 12) -> list[Dataset]:
    """A series with an identifier in every tag that may hold one."""
    slices = series(np.kron(body(depth), np.ones((1, 4, 4), np.int16)))
    for index, ds in enumerate(slices):
        ds.PatientName, ds.PatientID, ds.PatientBirthDate = "Planted^Jane", "MRN4711", "19620229"
        ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = "20210817"
        ds.SeriesInstanceUID = ds.StudyInstanceUID = "1.2.826.0.1.3680043.1"
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.3680043.2.{index}"
        ds.AccessionNumber, ds.InstitutionName, ds.ReferringPhysicianName = "ACC889", "Mercy-General", "Dr-Roentgen"
        ds.PatientAddress, ds.PatientTelephoneNumbers = "Elm-Street", "555-0199"
        ds.StudyDescription = ds.SeriesDescription = ds.ImageComments = ds.ProtocolName = "Planted Jane, chest"
    return slices


def write(folder: Path, slices: list[Dataset]) -> Path:
    folder.mkdir(parents=True)
    for index, ds in enumerate(slices):
        ds.save_as(folder / f"Planted_Jane_19620229_{index}.dcm", enforce_file_format=True)
    return folder


def nifti(file: Path, voxels: np.ndarray) -> Path:
    image = nibabel.Nifti1Image(voxels, np.diag([-1, -1, 2.0, 1]))
    image.header["descrip"], image.header["db_name"] = b"Planted^Jane MRN4711", b"ACC889"
    nibabel.save(image, file)
    return file


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of sound scans, and of scans that fail in as many places as there are."""
    root = tmp_path_factory.mktemp("data") / "raw"
    for number in range(8):
        write(root / "NCP" / f"Planted^Jane_{number}", planted())
        write(root / "Normal" / f"MRN4711-{number}", planted())
    faults = root / "NCP"
    for ds in (tilted := planted()):
        ds.Modality = "Planted^Jane"
    write(faults / "Planted_modality", tilted)
    for ds in (torn := planted()):
        ds.PixelData = ds.PixelData[:100]
    write(faults / "Planted_torn", torn)
    for ds in (wrong := planted()):
        ds.PixelSpacing = ["1", "1"]
    for file in write(faults / "Planted_number", wrong).iterdir():
        file.write_bytes(file.read_bytes().replace(b"DS\x04\x001\\1 ", b"DS\x04\x00Jane"))
    rng = np.random.default_rng(0)
    for name in ("Planted_1.nii.gz", "Planted_2.nii"):
        file = nifti(faults / "Planted_modality" / name, rng.integers(-1000, 300, (32, 32, 12)).astype(np.int16))
        file.rename(faults / name)
        (faults / name).write_bytes((faults / name).read_bytes()[:2000])
    odd = "ObjectType = Image\nComment = Planted^Jane\nPatientName = Planted^Jane\nNDims = 3\nDimSize = 9 9 Planted\n"
    (faults / "Planted_3.mha").write_text(odd + "ElementDataFile = LOCAL\n")
    (faults / "Planted_4.nrrd").write_text("NRRD0004\ntype: Jane\nsizes: 3 3 3\n")
    (faults / "Planted_5.zip").write_bytes(b"PK\x03\x04 Planted^Jane")
    write(faults / "Planted_two", planted() + planted())
    for file in sorted((faults / "Planted_two").iterdir())[-6:]:
        file.write_bytes(file.read_bytes().replace(b"MRN4711", b"MRN4712"))
    return root


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path):
    """Run a verb in an empty folder; check and return its exit code and all that it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["covidnet", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        printed = "".join(capfd.readouterr())
        searched(printed.encode(), " ".join(map(str, arguments[:2])))
        for file in tmp_path.rglob("*"):
            searched(str(file.relative_to(tmp_path)).encode(), "a file's name")
            if file.is_file():
                searched(file.read_bytes(), str(file))
        return code, printed

    return run


def searched(content: bytes, where: str) -> None:
    for secret in SECRETS:
        assert secret.lower().encode() not in content.lower(), f"{secret} in {where}"


def settings(root: Path, **data: object) -> list[str]:
    values = {"source": "dicom", "root": root, "max_rejected": 0.9, **data}
    pairs = [f"data.{key}={value}" for key, value in values.items()] + ["classes=[NCP,Normal]"]
    return [part for pair in pairs for part in ("-S", pair)]


def test_inspect(run, root: Path) -> None:
    assert "12" in run("inspect", root / "NCP" / "Planted^Jane_0")[1]
    assert run("inspect", root / "NCP" / "Planted^Jane_0", "--json")[0] == 0
    for path in sorted((root / "NCP").glob("Planted_*")):
        code, printed = run("inspect", path)
        assert code == 1, path
        assert "covidnet: " in printed
    assert run("inspect", root / "NCP" / "Planted^absent")[0] == 2


def test_ingest_and_audit(run, root: Path, tmp_path: Path) -> None:
    same = {"allow": "[duplicate-scan]"}
    assert run("ingest", *settings(root))[0] == 1  # the same slices under both labels
    assert run("ingest", *settings(root, **same), "--json")[0] == 0
    rejected = (tmp_path / "results" / "dataset" / "rejected.csv").read_text()
    assert rejected.count("\nNCP/") == 5  # a DICOM source leaves single volume files to others
    assert run("ingest", *settings(root, source="nifti"))[0] == 2  # a class without volumes
    assert run("ingest", *settings(root, max_rejected=0.0))[0] == 1
    run("audit", "results/dataset", "--json")
    run("audit", "results/dataset")
    assert run("ingest", *settings(root, **same), "--shard", "1/2")[0] == 0


def test_settings_that_do_not_fit(run, root: Path, tmp_path: Path) -> None:
    assert run("ingest", *settings(root / "NCP"))[0] == 2  # patients where classes are expected
    labels = root.parent / "labels.csv"
    for line in (
        "NCP/Planted^Jane_0,Planted,MRN4711,train",
        "Planted,NCP,MRN4711,train",
        "NCP/Planted^Jane_0,NCP,Jane,Jane",
    ):
        labels.write_text(f"path,label,patient,split\n{line}\n")
        assert run("ingest", *settings(root, labels=labels))[0] == 2


def test_predict(run, root: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    bundle = toy_bundle.write(tmp_path_factory.mktemp("bundle")).path
    paths = [root / "NCP" / "Planted^Jane_0", *sorted((root / "NCP").glob("Planted_*")), root / "Planted^absent"]
    code, printed = run("predict", *paths, "--bundle", bundle, "--explain", "maps")
    assert code == 1
    assert printed.count('"error"') == len(paths) - 1
    assert run("predict", *paths, "--bundle", bundle, "--json")[0] == 1
